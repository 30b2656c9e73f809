// sseload: many viewers of streams of server-sent events, on one thread, that check every token they are sent.
//
//   --address HOST:PORT --paths FILE (a line a stream; viewer i reads line i mod their number) --viewers N
//   --header "Name: value"  --post FILE (POST with this JSON body instead of GET)
//   --mode live    READY when all are attached; then --warm S, a window of --seconds S, then --grace S at most until
//                  every viewer has token --expect N (0: not asked)
//          idle    the same, without tokens: what waiting viewers cost
//          replay  each viewer reads until it has token --expect N, then the next of --total N begins
//   --pids NAME=PID,…   CPU and memory of these over the window
//   --resume       a viewer whose connection ends comes back with Last-Event-ID
//   --storm S      so long after the window began all connections are dropped at once, and come back
//   --churn SHARE  of the viewers that drop their connection each second and come back (with --resume)
//   --slow N       the first N viewers take 512 B a tenth of a second; they count for contiguity only
//   --ramp N       requests under way at once
//   --to-end       a replay is over with its last event or its connection, not with its last token
//
// Prints READY, then one JSON object. A frame counts when its blank line has come, so a viewer that comes back does so
// with the id of the last whole one. `gaps` are tokens never shown, `duplicates` tokens shown twice, `missing` those not
// there at the end.
#include <sys/epoll.h>

#include "common.h"

#define READY_SECONDS 60
#define RETRY_NS (50 * 1000000ull)
#define SLOW_EVERY_NS (100 * 1000000ull)
#define SLOW_BYTES 512
#define SLOW_BUFFER 4096

// A histogram with 128 steps an octave: less than 1 % off.
#define STEPS 128
#define BUCKETS (64 * STEPS)
struct histogram {
  uint64_t counts[BUCKETS], count, most;
};

static void add(struct histogram *h, uint64_t ns) {
  int shift = ns < STEPS ? 0 : 63 - __builtin_clzll(ns) - 7;
  h->counts[ns < STEPS ? (int)ns : (shift + 1) * STEPS + (int)((ns >> shift) - STEPS)]++;
  h->count++;
  if (ns > h->most) h->most = ns;
}

// In ms; -1 when nothing was counted.
static double quantile(const struct histogram *h, double share) {
  if (!h->count) return -1;
  uint64_t wanted = (uint64_t)(share * (double)h->count), seen = 0;
  if (wanted >= h->count) wanted = h->count - 1;
  for (int i = 0; i < BUCKETS; i++) {
    seen += h->counts[i];
    if (seen > wanted) return (double)(i < STEPS ? (uint64_t)i : (uint64_t)(i % STEPS + STEPS) << (i / STEPS - 1)) / 1e6;
  }
  return (double)h->most / 1e6;
}

enum phase { CLOSED, CONNECTING, HEADERS, BODY, ENDED };
enum mode { LIVE, IDLE, REPLAY };

struct viewer {
  int fd, slow, chunked, chunk_state, answered, got_since_return;
  enum phase phase;
  uint64_t opened, retry_at, read_at;
  int64_t last, shown, chunk_left;  // last token read; last token of a whole frame
  char *line;
  size_t line_size, line_room;
  char head[2048], id[96], last_id[96];
  int head_size, frame_is_end, end_shown;  // the frame is the last event; it has come whole
};

struct process {
  char name[64];
  int pid;
  double cpu_before, cpu_after;
  long rss_before, rss_after;
};

static struct viewer *viewers;
static int viewer_count = 1, path_count, in_flight, ramp = 256, poll_fd, slow_count, resume, to_end, attached;
static char **paths, headers[2048], *post;
static struct sockaddr_in address;
static enum mode mode;
static double warm = 1, window = 3, grace = 3, storm_after, churn;
static int64_t expect, total;
static struct process processes[32];
static int process_count, measuring;
static uint64_t tokens, frames, bytes, gaps, duplicates, errors, dropped, comments, finished, opened_count, returns;
static struct histogram latency, first, whole, back;
static uint64_t read_at;

// The process's own CPU clock: nanoseconds, with the threads that have ended, where /proc counts in ticks of 10 ms.
static double cpu_us(int pid) {
  clockid_t clock;
  struct timespec used;
  if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &used)) return 0;
  return (double)used.tv_sec * 1e6 + (double)used.tv_nsec / 1e3;
}

static long rss_kib(int pid) {
  char name[64], line[256];
  long found = 0;
  snprintf(name, sizeof name, "/proc/%d/status", pid);
  FILE *file = fopen(name, "r");
  if (!file) return 0;
  while (fgets(line, sizeof line, file))
    if (sscanf(line, "VmRSS: %ld", &found) == 1) break;
  fclose(file);
  return found;
}

static void begin_window(void) {
  measuring = 1;
  for (int i = 0; i < process_count; i++) processes[i].cpu_before = cpu_us(processes[i].pid);
}

static void end_window(void) {
  measuring = 0;
  for (int i = 0; i < process_count; i++) {
    processes[i].cpu_after = cpu_us(processes[i].pid);
    processes[i].rss_after = rss_kib(processes[i].pid);
  }
}

static void ask(struct viewer *viewer) {
  char request[8192];
  const char *path = paths[(viewer - viewers) % path_count];
  int n = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n%s",
                   post ? "POST" : "GET", path, headers);
  if (resume && viewer->last_id[0]) n += snprintf(request + n, sizeof request - (size_t)n, "Last-Event-ID: %s\r\n", viewer->last_id);
  if (post) n += snprintf(request + n, sizeof request - (size_t)n, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(post));
  n += snprintf(request + n, sizeof request - (size_t)n, "\r\n%s", post ? post : "");
  if (n >= (int)sizeof request || write(viewer->fd, request, (size_t)n) != n) errors++;
}

static void open_viewer(struct viewer *viewer) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("socket");
  no_delay(fd);
  if (viewer->slow) {
    int size = SLOW_BUFFER;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
  }
  viewer->fd = fd;
  viewer->phase = CONNECTING;
  viewer->opened = now();
  viewer->head_size = viewer->chunked = viewer->chunk_state = viewer->answered = viewer->got_since_return = 0;
  viewer->chunk_left = 0;
  viewer->line_size = 0;
  viewer->last = viewer->shown;
  viewer->id[0] = 0;
  viewer->frame_is_end = viewer->end_shown = 0;
  opened_count++;
  in_flight++;
  if (connect(fd, (void *)&address, sizeof address) < 0 && errno != EINPROGRESS) fail("connect");
  struct epoll_event wanted = {.events = EPOLLOUT, .data.ptr = viewer};
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &wanted);
}

static void shut(struct viewer *viewer) {
  if (viewer->phase == CONNECTING || viewer->phase == HEADERS) in_flight--;
  if (viewer->phase == BODY) attached--;
  if (viewer->phase != CLOSED && viewer->phase != ENDED) close(viewer->fd);
  viewer->phase = CLOSED;
}

// The connection is over. Who has not read everything comes back, where that is asked for.
static void ended(struct viewer *viewer) {
  int complete = mode == REPLAY ? expect && viewer->shown >= expect && (!to_end || viewer->end_shown)
                               : viewer->frame_is_end || (expect && viewer->shown >= expect);
  int failed = viewer->phase != BODY;
  shut(viewer);
  if (mode == REPLAY) {
    if (!complete) errors++;
    add(&whole, now() - viewer->opened);
    finished++;
    viewer->shown = viewer->last = 0;
    viewer->last_id[0] = 0;
    if ((int64_t)opened_count < total) open_viewer(viewer);
    return;
  }
  if (complete) {
    viewer->phase = ENDED;
    return;
  }
  if (!failed) dropped++;
  if (resume || failed) viewer->retry_at = now() + RETRY_NS;
  else viewer->phase = ENDED;
}

static void token(struct viewer *viewer, int64_t seq, uint64_t made) {
  if (!viewer->answered) {
    viewer->answered = 1;
    add(&first, read_at - viewer->opened);
  }
  if (!expect && !viewer->last) viewer->last = seq - 1;  // a server that makes the tokens itself had begun before
  if (seq <= viewer->last) duplicates++;
  else gaps += (uint64_t)(seq - viewer->last - 1);
  if (seq > viewer->last) viewer->last = seq;
  if (viewer->got_since_return == 0 && storm_after > 0) add(&back, read_at - viewer->opened);
  viewer->got_since_return = 1;
  if (!measuring || viewer->slow) return;
  tokens++;
  add(&latency, read_at > made ? read_at - made : 0);
}

static int is_end(const char *line, size_t size) {
  return (size == 16 && !memcmp(line, "event: completed", 16)) || (size == 16 && !memcmp(line, "event: cancelled", 16)) ||
         (size == 13 && !memcmp(line, "event: failed", 13));
}

static void on_line(struct viewer *viewer, const char *line, size_t size) {
  if (size && line[size - 1] == '\r') size--;
  if (!size) {
    viewer->shown = viewer->last;
    viewer->end_shown = viewer->frame_is_end;
    if (viewer->id[0]) memcpy(viewer->last_id, viewer->id, sizeof viewer->id);
    frames += (uint64_t)measuring;
  } else if (line[0] == ':') {
    comments++;
  } else if (size > 3 && !memcmp(line, "id:", 3)) {
    const char *from = line[3] == ' ' ? line + 4 : line + 3;
    snprintf(viewer->id, sizeof viewer->id, "%.*s", (int)(line + size - from), from);
  } else if (is_end(line, size)) {
    viewer->frame_is_end = 1;
  } else {
    const char *end = line + size;
    int64_t seq;
    uint64_t made;
    while ((line = memchr(line, '~', (size_t)(end - line))) && end - line >= TOKEN_BYTES)
      if (get_token(line, &seq, &made)) {
        token(viewer, seq, made);
        line += TOKEN_BYTES;
      } else {
        line++;
      }
  }
}

static void keep(struct viewer *viewer, const char *text, size_t size) {
  if (viewer->line_size + size > viewer->line_room) {
    viewer->line_room = (viewer->line_size + size) * 2;
    viewer->line = realloc(viewer->line, viewer->line_room);
  }
  memcpy(viewer->line + viewer->line_size, text, size);
  viewer->line_size += size;
}

static void on_text(struct viewer *viewer, const char *text, size_t size) {
  const char *end = text + size, *stop;
  for (; text < end && (stop = memchr(text, '\n', (size_t)(end - text))); text = stop + 1) {
    if (!viewer->line_size) {
      on_line(viewer, text, (size_t)(stop - text));
    } else {
      keep(viewer, text, (size_t)(stop - text));
      on_line(viewer, viewer->line, viewer->line_size);
      viewer->line_size = 0;
    }
  }
  if (text < end) keep(viewer, text, (size_t)(end - text));
}

// What is in the chunks; 1 after the last one.
static int on_body(struct viewer *viewer, const char *text, size_t size) {
  enum { LENGTH, DATA, AFTER };
  const char *end = text + size;
  if (!viewer->chunked) {
    on_text(viewer, text, size);
    return 0;
  }
  while (text < end) {
    if (viewer->chunk_state == LENGTH) {
      char c = *text++;
      if (c == '\n') {
        if (!viewer->chunk_left) return 1;
        viewer->chunk_state = DATA;
      } else if (c != '\r' && c != ' ') {
        viewer->chunk_left = viewer->chunk_left * 16 + (c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
      }
    } else if (viewer->chunk_state == DATA) {
      int64_t n = end - text < viewer->chunk_left ? end - text : viewer->chunk_left;
      on_text(viewer, text, (size_t)n);
      text += n;
      viewer->chunk_left -= n;
      if (!viewer->chunk_left) viewer->chunk_state = AFTER;
    } else if (*text++ == '\n') {
      viewer->chunk_state = LENGTH;
    }
  }
  return 0;
}

// The bytes of `text` that belong to the head; -1 for an answer that is no stream.
static ssize_t on_head(struct viewer *viewer, const char *text, size_t size) {
  size_t room = sizeof viewer->head - 1 - (size_t)viewer->head_size, before = (size_t)viewer->head_size;
  size_t n = size < room ? size : room;
  memcpy(viewer->head + viewer->head_size, text, n);
  viewer->head_size += (int)n;
  viewer->head[viewer->head_size] = 0;
  char *end = strstr(viewer->head, "\r\n\r\n");
  if (!end) return n < size ? -1 : (ssize_t)n;
  int status = atoi(viewer->head + 9);
  if (status / 100 != 2) {
    static int told;
    if (told++ < 3) fprintf(stderr, "answered: %.300s\n", viewer->head);
    return -1;
  }
  if (status == 204) viewer->frame_is_end = 1;
  end[2] = 0;
  viewer->chunked = strcasestr(viewer->head, "transfer-encoding: chunked") != NULL;
  viewer->phase = BODY;
  in_flight--;
  attached++;
  return (ssize_t)((size_t)(end + 4 - viewer->head) - before);
}

static char buffer[1 << 18];

static int has_replayed(const struct viewer *viewer) {
  if (mode != REPLAY || !expect || viewer->shown < expect) return 0;
  return !to_end || viewer->end_shown;
}

static void on_readable(struct viewer *viewer) {
  size_t most = viewer->slow ? SLOW_BYTES : sizeof buffer;
  for (;;) {
    ssize_t n = read(viewer->fd, buffer, most);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
      ended(viewer);
      return;
    }
    read_at = now();
    if (measuring) bytes += (uint64_t)n;
    char *text = buffer;
    size_t size = (size_t)n;
    if (viewer->phase == HEADERS) {
      ssize_t head = on_head(viewer, text, size);
      if (head < 0) {
        errors++;
        ended(viewer);
        return;
      }
      text += head;
      size -= (size_t)head;
    }
    if (viewer->phase == BODY) {
      int over = on_body(viewer, text, size);
      if (over || has_replayed(viewer)) {
        ended(viewer);
        return;
      }
    }
    if (viewer->slow) {
      viewer->read_at = read_at + SLOW_EVERY_NS;
      struct epoll_event nothing = {.events = 0, .data.ptr = viewer};
      epoll_ctl(poll_fd, EPOLL_CTL_MOD, viewer->fd, &nothing);
      return;
    }
    if (n < (ssize_t)most) return;
  }
}

static void on_event(struct viewer *viewer) {
  if (viewer->phase == CONNECTING) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(viewer->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
      errors++;
      ended(viewer);
      return;
    }
    viewer->phase = HEADERS;
    ask(viewer);
    struct epoll_event reading = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = viewer};
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, viewer->fd, &reading);
  } else if (viewer->phase == HEADERS || viewer->phase == BODY) {
    on_readable(viewer);
  }
}

// Those that wait to come back, and the slow ones whose time has come.
static void on_clock(uint64_t time) {
  for (int i = 0; i < viewer_count; i++) {
    struct viewer *viewer = &viewers[i];
    if (viewer->phase == CLOSED && viewer->retry_at && time >= viewer->retry_at && in_flight < ramp) {
      viewer->retry_at = 0;
      returns++;
      open_viewer(viewer);
    } else if (viewer->slow && viewer->phase == BODY && time >= viewer->read_at) {
      struct epoll_event reading = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = viewer};
      epoll_ctl(poll_fd, EPOLL_CTL_MOD, viewer->fd, &reading);
    }
  }
}

static void drop(struct viewer *viewer, uint64_t time) {
  if (viewer->phase == CLOSED || viewer->phase == ENDED) return;
  shut(viewer);
  viewer->retry_at = time;
}

static int everybody_has(int64_t seq) {
  for (int i = 0; i < viewer_count; i++)
    if (!viewers[i].slow && !viewers[i].frame_is_end && viewers[i].shown < seq) return 0;
  return 1;
}

static void take_option(const char *name, char *value) {
  if (!strcmp(name, "--address")) address = address_of(value);
  else if (!strcmp(name, "--paths")) paths = lines_of(value, &path_count);
  else if (!strcmp(name, "--header")) snprintf(headers + strlen(headers), sizeof headers - strlen(headers), "%s\r\n", value);
  else if (!strcmp(name, "--post")) { int n; post = lines_of(value, &n)[0]; }
  else if (!strcmp(name, "--viewers")) viewer_count = atoi(value);
  else if (!strcmp(name, "--mode")) mode = !strcmp(value, "replay") ? REPLAY : !strcmp(value, "idle") ? IDLE : LIVE;
  else if (!strcmp(name, "--warm")) warm = atof(value);
  else if (!strcmp(name, "--seconds")) window = atof(value);
  else if (!strcmp(name, "--grace")) grace = atof(value);
  else if (!strcmp(name, "--expect")) expect = atoll(value);
  else if (!strcmp(name, "--total")) total = atoll(value);
  else if (!strcmp(name, "--storm")) storm_after = atof(value);
  else if (!strcmp(name, "--churn")) churn = atof(value);
  else if (!strcmp(name, "--slow")) slow_count = atoi(value);
  else if (!strcmp(name, "--ramp")) ramp = atoi(value);
  else if (!strcmp(name, "--pids")) {
    char *save, *item;
    for (item = strtok_r(value, ",", &save); item && process_count < 32; item = strtok_r(NULL, ",", &save)) {
      struct process *process = &processes[process_count++];
      char *equals = strchr(item, '=');
      if (!equals) exit(2);
      snprintf(process->name, sizeof process->name, "%.*s", (int)(equals - item), item);
      process->pid = atoi(equals + 1);
    }
  } else {
    fprintf(stderr, "%s is no option\n", name);
    exit(2);
  }
}

static void report(double seconds, uint64_t missing, int silent, double storm_ms, double attach_seconds) {
  printf("{\"seconds\": %.4f, \"attach_seconds\": %.3f, \"tokens\": %llu, \"frames\": %llu, \"bytes\": %llu, ", seconds, attach_seconds,
         (unsigned long long)tokens, (unsigned long long)frames, (unsigned long long)bytes);
  printf("\"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f, ", quantile(&latency, .5), quantile(&latency, .99), (double)latency.most / 1e6);
  printf("\"first_p50_ms\": %.3f, \"first_p99_ms\": %.3f, ", quantile(&first, .5), quantile(&first, .99));
  printf("\"whole_p50_ms\": %.3f, \"whole_p99_ms\": %.3f, ", quantile(&whole, .5), quantile(&whole, .99));
  printf("\"back_p50_ms\": %.3f, \"back_p99_ms\": %.3f, \"storm_ms\": %.3f, ", quantile(&back, .5), quantile(&back, .99), storm_ms);
  printf("\"gaps\": %llu, \"duplicates\": %llu, \"missing\": %llu, \"silent\": %d, \"errors\": %llu, \"dropped\": %llu, ",
         (unsigned long long)gaps, (unsigned long long)duplicates, (unsigned long long)missing, silent, (unsigned long long)errors,
         (unsigned long long)dropped);
  printf("\"comments\": %llu, \"finished\": %llu, \"returns\": %llu, \"cpu_us\": %.0f, \"processes\": {", (unsigned long long)comments,
         (unsigned long long)finished, (unsigned long long)returns, own_cpu_us());
  for (int i = 0; i < process_count; i++)
    printf("%s\"%s\": {\"cpu_us\": %.0f, \"rss_before_kib\": %ld, \"rss_after_kib\": %ld}", i ? ", " : "", processes[i].name,
           processes[i].cpu_after - processes[i].cpu_before, processes[i].rss_before, processes[i].rss_after);
  printf("}}\n");
}

int main(int count, char **arguments) {
  for (int i = 1; i < count; i++) {
    if (!strcmp(arguments[i], "--resume")) {
      resume = 1;
    } else if (!strcmp(arguments[i], "--to-end")) {
      to_end = 1;
    } else {
      if (i + 1 == count) return 2;
      take_option(arguments[i], arguments[i + 1]);
      i++;
    }
  }
  signal(SIGPIPE, SIG_IGN);
  many_files();
  if (!path_count) return 2;
  if (!total) total = viewer_count;
  poll_fd = epoll_create1(0);
  viewers = calloc((size_t)viewer_count, sizeof *viewers);
  for (int i = 0; i < slow_count && i < viewer_count; i++) viewers[i].slow = 1;
  for (int i = 0; i < process_count; i++) processes[i].rss_before = rss_kib(processes[i].pid);
  uint64_t begun = now(), ready = 0, from = 0, to = 0, storm_at = 0, storm_over = 0, clock_at = 0, churn_at = 0, churned = 0;
  int started = 0, pending_churn = 0;
  if (mode == REPLAY) {
    begin_window();
    from = begun;
  }
  struct epoll_event events[1024];
  for (;;) {
    while (started < viewer_count && in_flight < ramp && (mode != REPLAY || (int64_t)opened_count < total)) open_viewer(&viewers[started++]);
    int n = epoll_wait(poll_fd, events, 1024, 5);
    for (int i = 0; i < n; i++) on_event(events[i].data.ptr);
    uint64_t time = now();
    if (mode == REPLAY) {
      if ((int64_t)finished < total && time - begun < (uint64_t)(window * SECOND)) continue;
      to = time;
      end_window();
      break;
    }
    if (time >= clock_at) {
      on_clock(time);
      clock_at = time + 2 * 1000000ull;
    }
    if (!ready && (attached == viewer_count || time - begun > READY_SECONDS * SECOND)) {
      ready = time;
      printf("READY %d %.3f\n", attached, (double)(ready - begun) / SECOND);
      fflush(stdout);
    }
    if (!ready) continue;
    if (!from && time - ready >= (uint64_t)(warm * SECOND)) {
      begin_window();
      from = churn_at = time;
    }
    if (!from) continue;
    if (storm_after > 0 && !storm_at && time - from >= (uint64_t)(storm_after * SECOND)) {
      storm_at = time;
      memset(&back, 0, sizeof back);
      for (int i = 0; i < viewer_count; i++) drop(&viewers[i], time);
    } else if (storm_at && !storm_over) {
      int all = 1;
      for (int i = 0; i < viewer_count && all; i++) all = viewers[i].got_since_return && viewers[i].phase == BODY;
      if (all) storm_over = time;
    }
    if (churn > 0 && !to) {
      pending_churn = (int)((double)(time - churn_at) / SECOND * churn * viewer_count) - (int)churned;
      for (; pending_churn > 0; pending_churn--) drop(&viewers[slow_count + (int)(churned++ * 7919 % (uint64_t)(viewer_count - slow_count))], time);
    }
    if (!to && time - from >= (uint64_t)(window * SECOND)) {
      to = time;
      end_window();
    }
    if (to && (!expect || everybody_has(expect) || time - to > (uint64_t)(grace * SECOND))) break;
  }
  uint64_t missing = 0;
  int silent = 0;
  for (int i = 0; i < viewer_count && mode != REPLAY; i++) {
    if (viewers[i].slow || viewers[i].frame_is_end) continue;
    silent += viewers[i].shown == 0;
    if (expect > viewers[i].shown) missing += (uint64_t)(expect - viewers[i].shown);
  }
  if (mode == REPLAY && (int64_t)finished < total) missing = (uint64_t)(total - (int64_t)finished) * (uint64_t)expect;
  double storm_ms = storm_over ? (double)(storm_over - storm_at) / 1e6 : -1;
  report((double)(to - from) / SECOND, missing, silent, storm_ms, ready ? (double)(ready - begun) / SECOND : 0);
  return 0;
}
