// Takes the system's locks away: NOLOCKS=flock or flock,record fail with NOLOCKS_ERR.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static int gone(const char *kind) {
    const char *which = getenv("NOLOCKS");
    return which && strstr(which, kind);
}

static int refuse(void) {
    const char *name = getenv("NOLOCKS_ERR");
    errno = !name || !strcmp(name, "ENOSYS") ? ENOSYS : !strcmp(name, "ENOLCK") ? ENOLCK : EOPNOTSUPP;
    return -1;
}

int flock(int fd, int operation) {
    static int (*real)(int, int);
    if (gone("flock")) return refuse();
    if (!real) real = (int (*)(int, int))dlsym(RTLD_NEXT, "flock");
    return real(fd, operation);
}

static int is_lock(int command) {
    return command == F_SETLK || command == F_SETLKW || command == F_GETLK ||
           command == F_OFD_SETLK || command == F_OFD_SETLKW || command == F_OFD_GETLK;
}

#define WRAPPED(name)                                                        \
    int name(int fd, int command, ...) {                                     \
        static int (*real)(int, int, ...);                                   \
        va_list rest;                                                        \
        va_start(rest, command);                                             \
        void *argument = va_arg(rest, void *);                               \
        va_end(rest);                                                        \
        if (is_lock(command) && gone("record")) return refuse();             \
        if (!real) real = (int (*)(int, int, ...))dlsym(RTLD_NEXT, #name);   \
        return real(fd, command, argument);                                  \
    }

WRAPPED(fcntl)
WRAPPED(fcntl64)
