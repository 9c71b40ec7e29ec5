/* Preloaded into a sound server, it makes the monotonic clock run faster by DRIFT_PPM parts in a million: the sound card
 * that the server plays at by that clock then runs fast (or, below 0, slow), as real ones do. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double ppm;
static int64_t began_ns;

static int64_t read_ns(clockid_t clock) {
    struct timespec now;
    if (syscall(SYS_clock_gettime, clock, &now)) return -1;
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

__attribute__((constructor)) static void begin(void) {
    const char *told = getenv("DRIFT_PPM");
    ppm = told ? atof(told) : 0.0;
    began_ns = read_ns(CLOCK_MONOTONIC);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (clock != CLOCK_MONOTONIC) return (int)syscall(SYS_clock_gettime, clock, now);
    int64_t ns = read_ns(CLOCK_MONOTONIC);
    if (ns < 0) return -1;
    ns += (int64_t)((double)(ns - began_ns) * ppm * 1e-6);
    now->tv_sec = ns / 1000000000;
    now->tv_nsec = ns % 1000000000;
    return 0;
}
