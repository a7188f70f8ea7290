// Lets the thread hang for ever that would give a file a name that contains HANG_BEFORE, or open
// one whose name contains HANG_OPEN, once the file HANG_ARMED is there.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void hang_if(const char *name, const char *part) {
    const char *armed = getenv("HANG_ARMED");
    if (part && armed && strstr(name, part) && !unlink(armed))
        for (;;) pause();
}

static void hang_before(const char *name) { hang_if(name, getenv("HANG_BEFORE")); }

int open64(const char *name, int flags, ...) {
    static int (*real)(const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    hang_if(name, getenv("HANG_OPEN"));
    return real(name, flags, mode);
}

int link(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "link");
    hang_before(to);
    return real(from, to);
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    static int (*real)(int, const char *, int, const char *, int);
    if (!real) real = (int (*)(int, const char *, int, const char *, int))dlsym(RTLD_NEXT, "linkat");
    hang_before(to);
    return real(a, from, b, to, flags);
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    hang_before(to);
    return real(from, to);
}
