// floor: the least a server can do. One thread, epoll, one write() an event, no store, no HTTP to speak of.
//
//     floor PORT RATE      GET /own    tokens of its own for each viewer, RATE a second
//                          GET /shared one stream for all of them, RATE a second
//                          GET /idle   nothing
//                          GET /replay/N  N tokens in one body, then close
//
// What it costs is a bound, not a rival: nothing is stored, so nobody could come back.
#include <sys/epoll.h>

#include "common.h"

enum kind { OWN, SHARED };
struct group {
  int fds[20000], count;
  uint64_t seqs[20000], begun, sent;
};

static struct group groups[2];
static const char HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";

static int frame(char *at, uint64_t seq) {
  int n = sprintf(at, "id: %llu\ndata: ", (unsigned long long)seq);
  put_token(at + n, seq, now());
  memcpy(at + n + TOKEN_BYTES, "\n\n", 2);
  return n + TOKEN_BYTES + 2;
}

static void forget(int fd) {
  close(fd);
  for (int g = 0; g < 2; g++)
    for (int i = 0; i < groups[g].count; i++)
      if (groups[g].fds[i] == fd) {
        groups[g].fds[i] = groups[g].fds[--groups[g].count];
        groups[g].seqs[i] = groups[g].seqs[groups[g].count];
        return;
      }
}

static void replay(int fd, int tokens) {
  char *body = malloc((size_t)tokens * 64 + 1);
  size_t size = 0, done = 0;
  for (int i = 1; i <= tokens; i++) size += (size_t)frame(body + size, (uint64_t)i);
  fcntl(fd, F_SETFL, 0);
  while (done < size) {
    ssize_t n = write(fd, body + done, size - done);
    if (n <= 0) break;
    done += (size_t)n;
  }
  free(body);
  close(fd);
}

static void answer(int fd, const char *request) {
  if (write(fd, HEAD, sizeof HEAD - 1) < 0) return;
  int kind = !strncmp(request, "GET /own", 8) ? OWN : !strncmp(request, "GET /shared", 11) ? SHARED : -1;
  if (!strncmp(request, "GET /replay/", 12)) replay(fd, atoi(request + 12));
  if (kind < 0) return;
  struct group *group = &groups[kind];
  group->seqs[group->count] = 0;
  group->fds[group->count++] = fd;
  if (kind == SHARED && group->count > 1) return;  // they join what is under way
  group->begun = now();
  group->sent = 0;
}

// A write that would block is left out: a viewer that is slow shows as one that lost tokens.
static void send_due(struct group *group, int kind, double rate) {
  if (!group->count) return;
  double step = (double)SECOND / rate / (kind == OWN ? group->count : 1);
  char text[128];
  while (group->begun + (uint64_t)((double)group->sent * step) <= now()) {
    if (kind == OWN) {
      int at = (int)(group->sent % (uint64_t)group->count);
      int n = frame(text, ++group->seqs[at]);
      if (write(group->fds[at], text, (size_t)n) < 0 && errno != EAGAIN) return;
    } else {
      int n = frame(text, group->sent + 1);
      for (int i = 0; i < group->count; i++)
        if (write(group->fds[i], text, (size_t)n) < 0 && errno != EAGAIN) continue;
    }
    group->sent++;
  }
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  signal(SIGPIPE, SIG_IGN);
  many_files();
  double rate = atof(arguments[2]);
  char text[64], request[4096];
  snprintf(text, sizeof text, "127.0.0.1:%s", arguments[1]);
  struct sockaddr_in address = address_of(text);
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) fail("bind");
  int poll = epoll_create1(0);
  struct epoll_event wanted = {.events = EPOLLIN, .data.fd = listener}, events[512];
  epoll_ctl(poll, EPOLL_CTL_ADD, listener, &wanted);
  for (;;) {
    int busy = groups[OWN].count || groups[SHARED].count;
    int n = epoll_wait(poll, events, 512, busy ? 1 : 50);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == listener) {
        int viewer;
        while ((viewer = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
          no_delay(viewer);
          struct epoll_event reading = {.events = EPOLLIN, .data.fd = viewer};
          epoll_ctl(poll, EPOLL_CTL_ADD, viewer, &reading);
        }
        continue;
      }
      ssize_t got = read(fd, request, sizeof request - 1);
      if (got <= 0) {
        forget(fd);
      } else {
        request[got] = 0;
        answer(fd, request);
      }
    }
    for (int kind = 0; kind < 2; kind++) send_due(&groups[kind], kind, rate);
  }
}
