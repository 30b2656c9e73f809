// writer: tokens into many streams, open loop: at their due time, whatever the server does. Phases are spread evenly.
//
//   --sink append   what a Legato worker sends: the script for the next delta of a running log, and the append script
//                   for the first ones, for several at once, and where the other does not store; at most one a
//                   generation in flight, what comes due meanwhile is the next. A line of TARGETS: record log request
//                   channel epoch owner
//   --sink xadd     XADD, one a token, pipelined. A line: the key
//   --sink http     POST, one a token, pipelined on kept connections. A line: path <tab> body before <tab> body after
//
//   --address HOST:PORT --targets FILE --rate TOKENS/S (each stream) --tokens N (each stream)
//   --connections N  --preload (as fast as the server takes it, no rate)  --most N (tokens in one append)
//   --sha HEX (of the append script)  --extend HEX (of the one for the next delta)  --header "Name: value"  --escape (bodies are form data)
//
// Prints one JSON object at the end. A generation whose append is refused (cancelled, fenced) is written no more.
#include "common.h"

#define PRELOAD_IN_FLIGHT 2000
#define DRAIN_SECONDS 10
#define SHORTEST_PAUSE 200000
#define LONGEST_PAUSE 1000000

enum sink { APPEND, XADD, HTTP };

struct stream {
  char *part[6];
  uint64_t made, sent, acked;  // tokens: due so far, handed to the server, answered
  uint64_t *times;             // when each was made; not in a preload
  int in_flight, stopped;
  int the_long_way;  // the next append is for the append script
};

struct link {
  int fd;
  char *out, *in;
  size_t out_size, out_room, in_size, in_room;
  uint64_t sent, answered;
  int *waiting;  // ring of streams whose replies are owed, in order
  size_t head, tail, ring;
};

static struct stream *streams;
static struct link *links;
static int stream_count, link_count = 1, preload, escape, most = 500;
static enum sink sink;
static const char *sha = "", *extend = "";
static char headers[1024];
static uint64_t refused, errors;

static void put(struct link *link, const char *text, size_t size) {
  if (link->out_size + size > link->out_room) {
    link->out_room = (link->out_size + size) * 2 + 65536;
    link->out = realloc(link->out, link->out_room);
  }
  memcpy(link->out + link->out_size, text, size);
  link->out_size += size;
}

static void put_bulk(struct link *link, const char *text, size_t size) {
  char length[32];
  put(link, length, (size_t)sprintf(length, "$%zu\r\n", size));
  put(link, text, size);
  put(link, "\r\n", 2);
}

static void put_text(struct link *link, const char *text) { put_bulk(link, text, strlen(text)); }

static void owe(struct link *link, int stream) {
  if (link->tail - link->head == link->ring) {
    size_t ring = link->ring ? link->ring * 2 : 4096;
    int *waiting = malloc(ring * sizeof *waiting);
    for (size_t i = link->head; i < link->tail; i++) waiting[i % ring] = link->waiting[i % link->ring];
    free(link->waiting);
    link->waiting = waiting;
    link->ring = ring;
  }
  link->waiting[link->tail++ % link->ring] = stream;
  link->sent++;
}

static void send_extend(struct link *link, struct stream *stream) {
  uint64_t last = stream->sent;
  char text[64], token[TOKEN_BYTES];
  put(link, "*12\r\n", 5);
  put_text(link, "EVALSHA");
  put_text(link, extend);
  put_text(link, "2");
  put_text(link, stream->part[0]);
  put_text(link, stream->part[1]);
  snprintf(text, sizeof text, "%s %s", stream->part[4], stream->part[5]);
  put_text(link, text);
  put_text(link, stream->part[3]);
  sprintf(text, "%llu", (unsigned long long)last);
  put_text(link, text);
  sprintf(text, "%llu", (unsigned long long)last + 1);
  put_text(link, text);
  snprintf(text, sizeof text, "-%s", stream->part[4]);
  put_text(link, text);
  put_text(link, "d");
  put_token(token, last + 1, stream->times ? stream->times[last] : now());
  put_bulk(link, token, TOKEN_BYTES);
}

static void send_append(struct link *link, int number) {
  struct stream *stream = &streams[number];
  uint64_t from = stream->sent, count = stream->made - stream->sent;
  if (count > (uint64_t)most) count = (uint64_t)most;
  char text[64], token[TOKEN_BYTES];
  if (count == 1 && from && *extend && !stream->the_long_way) {
    send_extend(link, stream);
    stream->sent++;
    stream->in_flight = 1;
    owe(link, number);
    return;
  }
  put(link, text, (size_t)sprintf(text, "*%llu\r\n", 11 + 3 * (unsigned long long)count));
  put_text(link, "EVALSHA");
  put_text(link, sha);
  put_text(link, "3");
  for (int i = 0; i < 3; i++) put_text(link, stream->part[i]);
  put_text(link, stream->part[4]);
  put_text(link, stream->part[5]);
  if (from) sprintf(text, "%llu-%s", (unsigned long long)from, stream->part[4]);
  put_text(link, from ? text : "0-0");
  put_text(link, stream->part[3]);
  put_text(link, "0");
  for (uint64_t seq = from + 1; seq <= from + count; seq++) {
    sprintf(text, "%llu-%s", (unsigned long long)seq, stream->part[4]);
    put_token(token, seq, stream->times ? stream->times[seq - 1] : now());
    put_text(link, text);
    put_text(link, "d");
    put_bulk(link, token, TOKEN_BYTES);
  }
  stream->sent += count;
  stream->in_flight = 1;
  owe(link, number);
}

static void send_xadd(struct link *link, int number) {
  struct stream *stream = &streams[number];
  char token[TOKEN_BYTES];
  while (stream->sent < stream->made) {
    put_token(token, stream->sent + 1, stream->times ? stream->times[stream->sent] : now());
    put(link, "*5\r\n$4\r\nXADD\r\n", 14);
    put_text(link, stream->part[0]);
    put(link, "$1\r\n*\r\n$1\r\nd\r\n", 14);
    put_bulk(link, token, TOKEN_BYTES);
    stream->sent++;
    owe(link, number);
  }
}

static void send_http(struct link *link, int number) {
  struct stream *stream = &streams[number];
  char head[2048], token[TOKEN_BYTES], escaped[3 * TOKEN_BYTES];
  while (stream->sent < stream->made) {
    put_token(token, stream->sent + 1, stream->times ? stream->times[stream->sent] : now());
    const char *body = token;
    size_t size = TOKEN_BYTES;
    if (escape) {
      size = 0;
      for (int i = 0; i < TOKEN_BYTES; i++)
        if (token[i] == ':' || token[i] == ';') size += (size_t)sprintf(escaped + size, "%%%02X", token[i]);
        else escaped[size++] = token[i];
      body = escaped;
    }
    size_t before = strlen(stream->part[1]), after = strlen(stream->part[2]);
    put(link, head, (size_t)snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %zu\r\n\r\n",
                                     stream->part[0], headers, before + size + after));
    put(link, stream->part[1], before);
    put(link, body, size);
    put(link, stream->part[2], after);
    stream->sent++;
    owe(link, number);
  }
}

static void send_due(int number) {
  struct stream *stream = &streams[number];
  struct link *link = &links[number % link_count];
  if (stream->stopped || stream->sent == stream->made) return;
  switch (sink) {
    case APPEND:
      if (!stream->in_flight) send_append(link, number);
      break;
    case XADD:
      send_xadd(link, number);
      break;
    case HTTP:
      send_http(link, number);
      break;
  }
}

static void flush(struct link *link) {
  size_t done = 0;
  while (done < link->out_size) {
    ssize_t n = write(link->fd, link->out + done, link->out_size - done);
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0) fail("write");
    done += (size_t)n;
  }
  memmove(link->out, link->out + done, link->out_size - done);
  link->out_size -= done;
}

// Bytes of the whole RESP reply at `at`; 0 when some of it is still to come.
static size_t resp_size(const char *at, size_t size) {
  const char *end = memchr(at, '\n', size);
  if (!end) return 0;
  size_t line = (size_t)(end - at) + 1;
  long count = strtol(at + 1, NULL, 10);
  if (at[0] == '$') return count < 0 ? line : line + (size_t)count + 2 <= size ? line + (size_t)count + 2 : 0;
  if (at[0] != '*') return line;
  for (long i = 0; i < count; i++) {
    size_t item = line < size ? resp_size(at + line, size - line) : 0;
    if (!item) return 0;
    line += item;
  }
  return line;
}

static void complain(const char *text, size_t size) {
  if (errors++ < 3) fprintf(stderr, "refused: %.*s\n", (int)(size < 200 ? size : 200), text);
}

static void answered(struct link *link, const char *reply, size_t size) {
  int number = link->waiting[link->head++ % link->ring];
  struct stream *stream = &streams[number];
  link->answered++;
  if (sink != APPEND) {
    if (reply[0] == '-') complain(reply, size);
    stream->acked++;
    return;
  }
  stream->in_flight = 0;
  if (reply[0] == '-') {
    complain(reply, size);
    stream->stopped = 1;
  } else if (reply[0] == ':' && reply[1] == '0') {
    stream->the_long_way = 1;
    stream->sent = stream->acked;
    send_due(number);
  } else if (reply[0] != ':' && !memmem(reply, size < 24 ? size : 24, "appended", 8)) {
    refused++;
    stream->stopped = 1;
  } else {
    stream->the_long_way = 0;
    stream->acked = stream->sent;
    send_due(number);
  }
}

// Bytes of the HTTP answer at `at`, body too; 0 when some of it is still to come.
static size_t http_size(const char *at, size_t size) {
  const char *end = memmem(at, size, "\r\n\r\n", 4);
  if (!end) return 0;
  size_t head = (size_t)(end - at) + 4;
  char lower[4096];
  size_t n = head < sizeof lower - 1 ? head : sizeof lower - 1;
  for (size_t i = 0; i < n; i++) lower[i] = (char)(at[i] >= 'A' && at[i] <= 'Z' ? at[i] + 32 : at[i]);
  lower[n] = 0;
  const char *length = strstr(lower, "content-length:");
  if (length) {
    size_t body = (size_t)atol(length + 15);
    return head + body <= size ? head + body : 0;
  }
  if (!strstr(lower, "transfer-encoding: chunked")) return head;
  const char *last = memmem(at + head - 2, size - head + 2, "\r\n0\r\n\r\n", 7);
  if (!last && size >= head + 5 && !memcmp(at + head, "0\r\n\r\n", 5)) return head + 5;
  return last ? (size_t)(last - at) + 7 : 0;
}

static void drain(struct link *link) {
  for (;;) {
    if (link->in_size + 65536 > link->in_room) {
      link->in_room = link->in_room * 2 + (1 << 17);
      link->in = realloc(link->in, link->in_room);
    }
    ssize_t n = read(link->fd, link->in + link->in_size, link->in_room - link->in_size);
    if (n == 0) {
      fprintf(stderr, "the server closed the connection after %llu of %llu answers\n", (unsigned long long)link->answered,
              (unsigned long long)link->sent);
      exit(1);
    }
    if (n < 0) return;
    link->in_size += (size_t)n;
    size_t at = 0, size;
    while (at < link->in_size) {
      const char *reply = link->in + at;
      size_t left = link->in_size - at;
      if (!(size = sink == HTTP ? http_size(reply, left) : resp_size(reply, left))) break;
      if (sink == HTTP && reply[9] != '2') complain(reply, size);
      answered(link, reply, size);
      at += size;
    }
    memmove(link->in, link->in + at, link->in_size - at);
    link->in_size -= at;
  }
}

static void exchange(void) {
  for (int i = 0; i < link_count; i++) {
    drain(&links[i]);
    if (links[i].out_size) flush(&links[i]);
  }
}

static int all_answered(void) {
  for (int i = 0; i < link_count; i++)
    if (links[i].answered < links[i].sent || links[i].out_size) return 0;
  for (int i = 0; i < stream_count; i++)
    if (!streams[i].stopped && streams[i].sent < streams[i].made) return 0;
  return 1;
}

static void rest(uint64_t ns) {
  struct timespec pause = {0, (long)ns};
  nanosleep(&pause, NULL);
}

int main(int count, char **arguments) {
  const char *address = "", *targets = "";
  double rate = 50;
  uint64_t tokens = 100;
  for (int i = 1; i < count; i++) {
    char *name = arguments[i];
    if (!strcmp(name, "--preload")) preload = 1;
    else if (!strcmp(name, "--escape")) escape = 1;
    else if (i + 1 == count) return 2;
    else {
      char *value = arguments[++i];
      if (!strcmp(name, "--sink")) sink = !strcmp(value, "append") ? APPEND : !strcmp(value, "xadd") ? XADD : HTTP;
      else if (!strcmp(name, "--address")) address = value;
      else if (!strcmp(name, "--targets")) targets = value;
      else if (!strcmp(name, "--rate")) rate = atof(value);
      else if (!strcmp(name, "--tokens")) tokens = strtoull(value, NULL, 10);
      else if (!strcmp(name, "--connections")) link_count = atoi(value);
      else if (!strcmp(name, "--most")) most = atoi(value);
      else if (!strcmp(name, "--sha")) sha = value;
      else if (!strcmp(name, "--extend")) extend = value;
      else if (!strcmp(name, "--header")) snprintf(headers + strlen(headers), sizeof headers - strlen(headers), "%s\r\n", value);
      else return fprintf(stderr, "%s is no option\n", name), 2;
    }
  }
  char **lines = lines_of(targets, &stream_count);
  streams = calloc((size_t)stream_count, sizeof *streams);
  for (int i = 0; i < stream_count; i++) {
    char *rest_of_line = lines[i];
    for (int k = 0; k < 6; k++) {
      streams[i].part[k] = rest_of_line ? strsep(&rest_of_line, "\t") : "";
    }
    if (!preload) streams[i].times = malloc(tokens * sizeof(uint64_t));
  }
  links = calloc((size_t)link_count, sizeof *links);
  struct sockaddr_in where = address_of(address);
  for (int i = 0; i < link_count; i++) {
    links[i].fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(links[i].fd, (void *)&where, sizeof where)) fail("connect");
    no_delay(links[i].fd);
    fcntl(links[i].fd, F_SETFL, O_NONBLOCK);
  }
  uint64_t begun = now(), total = tokens * (uint64_t)stream_count, made = 0, late_ns = 0;
  double step = (double)SECOND / rate / stream_count;
  while (made < total) {
    uint64_t time = now();
    for (int burst = 0; made < total && burst < 512; burst++) {
      int number = (int)(made % (uint64_t)stream_count);
      struct stream *stream = &streams[number];
      struct link *link = &links[number % link_count];
      uint64_t due = begun + (uint64_t)((double)made * step);
      if (preload ? link->sent - link->answered > PRELOAD_IN_FLIGHT : due > time) break;
      if (!preload && time - due > late_ns) late_ns = time - due;
      if (stream->times) stream->times[stream->made] = now();
      stream->made++;
      made++;
      send_due(number);
    }
    exchange();
    if (!preload) {
      uint64_t due = begun + (uint64_t)((double)made * step);
      time = now();
      uint64_t pause = due > time ? due - time : 0;
      rest(pause < SHORTEST_PAUSE ? SHORTEST_PAUSE : pause > LONGEST_PAUSE ? LONGEST_PAUSE : pause);
    }
  }
  double writing = (double)(now() - begun) / SECOND;
  uint64_t until = now() + DRAIN_SECONDS * SECOND * (preload ? 10 : 1);
  while (!all_answered() && now() < until) {
    for (int i = 0; i < stream_count; i++) send_due(i);
    exchange();
    rest(SHORTEST_PAUSE);
  }
  uint64_t stored = 0, sent = 0, stopped = 0;
  for (int i = 0; i < stream_count; i++) {
    stored += streams[i].acked;
    stopped += (uint64_t)streams[i].stopped;
  }
  for (int i = 0; i < link_count; i++) sent += links[i].sent;
  printf("{\"tokens\": %llu, \"stored\": %llu, \"commands\": %llu, \"stopped\": %llu, \"refused\": %llu, \"errors\": %llu, "
         "\"late_ms\": %.3f, \"seconds\": %.3f, \"cpu_us\": %.0f}\n",
         (unsigned long long)made, (unsigned long long)stored, (unsigned long long)sent, (unsigned long long)stopped,
         (unsigned long long)refused, (unsigned long long)errors, (double)late_ns / 1e6, writing, own_cpu_us());
  return 0;
}
