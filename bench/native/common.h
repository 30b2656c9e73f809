// What the programs of the benchmark share: the clock, the token they all send, files of lines, sockets.
//
// A token is text of a fixed width that tells where it begins and ends, so that a frame may join any number of them:
//     ~0000042:000a1b2c3d4e5f60;
// the number of the token in its stream, from 1, and CLOCK_MONOTONIC in ns when it was made, in hex.
#pragma once
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TOKEN_BYTES 26
#define SECOND 1000000000ull

static inline uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static inline void put_token(char *at, uint64_t seq, uint64_t made) {
  static const char hex[] = "0123456789abcdef";
  at[0] = '~';
  for (int i = 7; i >= 1; i--, seq /= 10) at[i] = (char)('0' + seq % 10);
  at[8] = ':';
  for (int i = 24; i >= 9; i--, made >>= 4) at[i] = hex[made & 15];
  at[25] = ';';
}

// The token at `at`, which has TOKEN_BYTES behind it; 0 if there is none.
static inline int get_token(const char *at, int64_t *seq, uint64_t *made) {
  if (at[0] != '~' || at[8] != ':' || at[25] != ';') return 0;
  int64_t n = 0;
  for (int i = 1; i < 8; i++) n = n * 10 + (at[i] - '0');
  uint64_t t = 0;
  for (int i = 9; i < 25; i++) t = t << 4 | (uint64_t)(at[i] <= '9' ? at[i] - '0' : at[i] - 'a' + 10);
  *seq = n;
  *made = t;
  return 1;
}

// The lines of a file, without their ends.
static __attribute__((unused)) char **lines_of(const char *name, int *count) {
  FILE *file = fopen(name, "r");
  if (!file) fail(name);
  char **lines = NULL, *line = NULL;
  size_t room = 0;
  ssize_t length;
  int n = 0;
  while ((length = getline(&line, &room, file)) > 0) {
    if (line[length - 1] == '\n') line[length - 1] = 0;
    lines = realloc(lines, (size_t)(n + 1) * sizeof *lines);
    lines[n++] = strdup(line);
  }
  free(line);
  fclose(file);
  *count = n;
  return lines;
}

static struct sockaddr_in address_of(const char *text) {
  char host[64];
  const char *colon = strrchr(text, ':');
  if (!colon || colon - text >= (long)sizeof host) {
    fprintf(stderr, "%s is not host:port\n", text);
    exit(2);
  }
  snprintf(host, sizeof host, "%.*s", (int)(colon - text), text);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon + 1))};
  if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
    fprintf(stderr, "%s is not an address\n", host);
    exit(2);
  }
  return address;
}

static inline void no_delay(int fd) {
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static __attribute__((unused)) void many_files(void) {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

static __attribute__((unused)) double own_cpu_us(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}
