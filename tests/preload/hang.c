// Lets the thread hang for ever that would give a file a name that contains HANG_BEFORE,
// once the file HANG_ARMED is there.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void hang_before(const char *name) {
    const char *part = getenv("HANG_BEFORE"), *armed = getenv("HANG_ARMED");
    if (part && armed && strstr(name, part) && !unlink(armed))
        for (;;) pause();
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
