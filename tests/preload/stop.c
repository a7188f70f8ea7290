// Stops the process right before it gives a file a name that contains STOP_BEFORE, once
// the file STOP_ARMED is there.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void stop_before(const char *name) {
    const char *part = getenv("STOP_BEFORE"), *armed = getenv("STOP_ARMED");
    if (part && armed && strstr(name, part) && !unlink(armed)) raise(SIGSTOP);
}

int link(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "link");
    stop_before(to);
    return real(from, to);
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    static int (*real)(int, const char *, int, const char *, int);
    if (!real) real = (int (*)(int, const char *, int, const char *, int))dlsym(RTLD_NEXT, "linkat");
    stop_before(to);
    return real(a, from, b, to, flags);
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    stop_before(to);
    return real(from, to);
}
