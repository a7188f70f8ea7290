/* Counts the file calls of a process and its children, and fails the n-th: to be preloaded.

   What to do stands in a file that FAULTS_CONTROL names. It is mapped, shared, by every
   process that inherits the variable, and laid out as `struct control` below, which shim.py
   repeats. As long as it is not armed, a call costs one look at one word.

   A call counts when its path, or that of its descriptor, lies under one of the prefixes,
   contains `filter`, and is of one of the kinds in `kinds`. The n-th of them, over all
   processes and threads, gets what `action` says; with `after` those that follow fail too,
   if they are of a kind in `after_kinds`. Every call under a prefix is noted in the log.

   Calls that go through libc are caught by their names. Rust's tempfile renames without
   libc; such a call is caught by a seccomp filter, which has the kernel send SIGSYS for it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

enum kind { OPEN, CREATE, WRITE, FSYNC, RENAME, LINK, UNLINK, MMAP, MKDIR, FLOCK, CLOSE, TRUNCATE };
enum action { COUNT, FAIL, KILL, FAIL_DONE, SHORT, TEAR };

/* What the log says of a call, beyond a real errno: it went well, or the process was killed. */
enum { WENT_WELL = 0, WAS_KILLED = -1, UNDER_WAY = -2 };

struct entry {
  int32_t kind;
  int32_t pid;
  int32_t outcome;
  int32_t injected;
  int64_t bytes;
  char path[232];
};

struct control {
  atomic_uint armed;
  uint32_t traps;
  uint32_t kinds;
  uint32_t action;
  uint32_t error;
  uint32_t after;
  uint32_t after_kinds;
  int64_t nth;
  atomic_llong seen;
  atomic_llong acted;
  atomic_llong logged;
  int64_t capacity;
  char prefix[4][256];
  char filter[256];
  struct entry log[];
};

static struct control *control;

static void set_traps(void);

__attribute__((constructor)) static void begin_life(void) {
  const char *path = getenv("FAULTS_CONTROL");
  int fd = path ? openat(AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
  struct stat facts;
  if (fd < 0 || fstat(fd, &facts) != 0) return;
  void *mapped = mmap(NULL, facts.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped != MAP_FAILED) control = mapped;
  close(fd);
  if (control) set_traps();
}

/* One call under way: where it is noted, and what shall become of it. */
struct call {
  struct entry *entry;
  enum action action;
};

static int armed(void) { return control && atomic_load_explicit(&control->armed, memory_order_acquire); }

static int concerns(const char *path) {
  for (int i = 0; i < 4; i++) {
    const char *prefix = control->prefix[i];
    if (*prefix && strncmp(path, prefix, strlen(prefix)) == 0) return 1;
  }
  return 0;
}

static const char *path_of(int fd, char *buffer, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, buffer, size - 1);
  if (length < 0) return NULL;
  buffer[length] = 0;
  return buffer;
}

static const char *path_at(int folder, const char *path, char *buffer, size_t size) {
  if (!path || *path == '/') return path;
  char above[2048];
  if (folder == AT_FDCWD ? !getcwd(above, sizeof above) : !path_of(folder, above, sizeof above)) return path;
  snprintf(buffer, size, "%s/%s", above, path);
  return buffer;
}

static struct entry *noted(enum kind kind, const char *path, int64_t bytes) {
  long long place = atomic_fetch_add(&control->logged, 1);
  if (place >= control->capacity) return NULL;
  struct entry *entry = &control->log[place];
  entry->kind = kind;
  entry->pid = getpid();
  entry->outcome = UNDER_WAY;
  entry->injected = COUNT;
  entry->bytes = bytes;
  /* The end of a path tells more than its beginning. */
  size_t length = strlen(path), room = sizeof entry->path - 1;
  strcpy(entry->path, length > room ? path + length - room : path);
  return entry;
}

static void die(struct entry *entry) {
  if (entry) entry->outcome = WAS_KILLED;
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static struct call begin(enum kind kind, const char *path, int64_t bytes) {
  struct call call = {NULL, COUNT};
  if (!armed() || !path || !concerns(path)) return call;
  call.entry = noted(kind, path, bytes);
  if (!strstr(path, control->filter)) return call;
  int counts = control->kinds >> kind & 1;
  long long turn = counts ? atomic_fetch_add(&control->seen, 1) + 1 : 0;
  if (turn && turn == control->nth) {
    call.action = control->action;
  } else if (control->after && control->nth && atomic_load(&control->acted) > 0) {
    if (control->after_kinds >> kind & 1) call.action = FAIL;
  }
  if (call.action != COUNT) {
    atomic_fetch_add(&control->acted, 1);
    if (call.entry) call.entry->injected = call.action;
  }
  if (call.action == KILL) die(call.entry);
  return call;
}

/* Whether the real call is made at all. */
static int goes_on(struct call call) { return call.action != FAIL; }

/* Note how the real call went; true when its success must be kept from the caller. */
static int ended(struct call call, int went_well) {
  int real = errno;
  if (call.entry) call.entry->outcome = went_well ? WENT_WELL : real;
  errno = real;
  return call.action == FAIL_DONE && went_well;
}

static int refused(struct call call) {
  if (call.entry && call.action == FAIL) call.entry->outcome = control->error;
  errno = control->error;
  return -1;
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define FINISH(type, call, made) \
  do { \
    if (!goes_on(call)) return (type)refused(call); \
    type result = made; \
    return ended(call, result != (type)-1) ? (type)refused(call) : result; \
  } while (0)

/* open: all of them take an optional mode. One that may make a file is a kind of its own. */

#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list more; \
    va_start(more, flags); \
    mode = va_arg(more, mode_t); \
    va_end(more); \
  }

#define KIND(flags) ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE ? CREATE : OPEN)

#define OPENS(name) \
  int name(const char *path, int flags, ...) { \
    MODE(flags); \
    REAL(name); \
    char joined[4400]; \
    struct call call = begin(KIND(flags), armed() ? path_at(AT_FDCWD, path, joined, sizeof joined) : NULL, flags); \
    FINISH(int, call, real(path, flags, mode)); \
  }

#define OPENS_AT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    MODE(flags); \
    REAL(name); \
    char joined[4400]; \
    struct call call = begin(KIND(flags), armed() ? path_at(folder, path, joined, sizeof joined) : NULL, flags); \
    FINISH(int, call, real(folder, path, flags, mode)); \
  }

OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

/* Calls on a descriptor. */

#define ON_FD(type, name, parameters, kind, bytes, ...) \
  type name parameters { \
    REAL(name); \
    char path[4400]; \
    struct call call = begin(kind, armed() ? path_of(fd, path, sizeof path) : NULL, (int64_t)(bytes)); \
    FINISH(type, call, real(__VA_ARGS__)); \
  }

/* A half-written piece: what a full disk or a kill leaves. */
#define WRITES(name, parameters, size, whole, half) \
  ssize_t name parameters { \
    REAL(name); \
    char path[4400]; \
    struct call call = begin(WRITE, armed() ? path_of(fd, path, sizeof path) : NULL, (int64_t)(size)); \
    if (call.action == SHORT || call.action == TEAR) { \
      ssize_t written = half; \
      if (call.action == TEAR) die(call.entry); \
      ended(call, written >= 0); \
      return written; \
    } \
    FINISH(ssize_t, call, whole); \
  }

#define HALF(n) ((n) > 1 ? (n) / 2 : (n))

WRITES(write, (int fd, const void *data, size_t n), n, real(fd, data, n), real(fd, data, HALF(n)))
WRITES(pwrite, (int fd, const void *data, size_t n, off_t at), n, real(fd, data, n, at), real(fd, data, HALF(n), at))
WRITES(pwrite64, (int fd, const void *data, size_t n, off64_t at), n, real(fd, data, n, at),
       real(fd, data, HALF(n), at))
WRITES(writev, (int fd, const struct iovec *parts, int n), n, real(fd, parts, n), real(fd, parts, HALF(n)))
WRITES(pwritev, (int fd, const struct iovec *parts, int n, off_t at), n, real(fd, parts, n, at),
       real(fd, parts, HALF(n), at))
WRITES(pwritev64, (int fd, const struct iovec *parts, int n, off64_t at), n, real(fd, parts, n, at),
       real(fd, parts, HALF(n), at))
WRITES(sendfile, (int fd, int from, off_t *at, size_t n), n, real(fd, from, at, n), real(fd, from, at, HALF(n)))
WRITES(sendfile64, (int fd, int from, off64_t *at, size_t n), n, real(fd, from, at, n), real(fd, from, at, HALF(n)))
WRITES(copy_file_range, (int from, off64_t *at, int fd, off64_t *to, size_t n, unsigned flags), n,
       real(from, at, fd, to, n, flags), real(from, at, fd, to, HALF(n), flags))

ON_FD(int, ftruncate, (int fd, off_t n), TRUNCATE, n, fd, n)
ON_FD(int, ftruncate64, (int fd, off64_t n), TRUNCATE, n, fd, n)
ON_FD(int, fsync, (int fd), FSYNC, 0, fd)
ON_FD(int, fdatasync, (int fd), FSYNC, 0, fd)
ON_FD(int, flock, (int fd, int what), FLOCK, what, fd, what)

/* These two return the error instead of setting errno. */
#define RESERVES(name, offset) \
  int name(int fd, offset at, offset n) { \
    REAL(name); \
    char path[4400]; \
    struct call call = begin(TRUNCATE, armed() ? path_of(fd, path, sizeof path) : NULL, (int64_t)n); \
    if (!goes_on(call)) { \
      refused(call); \
      return control->error; \
    } \
    int failed = real(fd, at, n); \
    errno = failed; \
    return ended(call, failed == 0) ? (int)control->error : failed; \
  }

RESERVES(posix_fallocate, off_t)
RESERVES(posix_fallocate64, off64_t)

/* Only what was written is worth a failing close: that of a reader tells nothing, and that of
   memory without a name, whose path is no file's, never fails. */
int close(int fd) {
  REAL(close);
  char buffer[4400];
  int written = armed() && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
  const char *path = written ? path_of(fd, buffer, sizeof buffer) : NULL;
  if (path && strncmp(path, "/memfd:", 7) == 0) path = NULL;
  struct call call = begin(CLOSE, path, 0);
  /* A descriptor is gone after close(2), whatever it returned. */
  if (!goes_on(call)) real(fd);
  FINISH(int, call, real(fd));
}

#define MAPS(name, offset) \
  void *name(void *at, size_t n, int access, int flags, int fd, offset from) { \
    REAL(name); \
    char path[4400]; \
    int of_file = !(flags & MAP_ANONYMOUS) && armed(); \
    struct call call = begin(MMAP, of_file ? path_of(fd, path, sizeof path) : NULL, (int64_t)n); \
    if (!goes_on(call)) { \
      refused(call); \
      return MAP_FAILED; \
    } \
    void *mapped = real(at, n, access, flags, fd, from); \
    if (!ended(call, mapped != MAP_FAILED)) return mapped; \
    refused(call); \
    return MAP_FAILED; \
  }

MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

/* Calls on names: of two, the new one counts. */

#define ON_NAME(name, parameters, kind, folder, which, bytes, ...) \
  int name parameters { \
    REAL(name); \
    char joined[4400]; \
    struct call call = begin(kind, armed() ? path_at(folder, which, joined, sizeof joined) : NULL, bytes); \
    FINISH(int, call, real(__VA_ARGS__)); \
  }

ON_NAME(rename, (const char *old, const char *new), RENAME, AT_FDCWD, new, 0, old, new)
ON_NAME(link, (const char *old, const char *new), LINK, AT_FDCWD, new, 0, old, new)
ON_NAME(linkat, (int from, const char *old, int to, const char *new, int flags), LINK, to, new, 0, from, old, to,
        new, flags)
ON_NAME(symlink, (const char *target, const char *new), LINK, AT_FDCWD, new, 0, target, new)
ON_NAME(unlink, (const char *path), UNLINK, AT_FDCWD, path, 0, path)
ON_NAME(unlinkat, (int folder, const char *path, int flags), UNLINK, folder, path, flags, folder, path, flags)
ON_NAME(rmdir, (const char *path), UNLINK, AT_FDCWD, path, 0, path)
ON_NAME(mkdir, (const char *path, mode_t mode), MKDIR, AT_FDCWD, path, 0, path, mode)
ON_NAME(mkdirat, (int folder, const char *path, mode_t mode), MKDIR, folder, path, 0, folder, path, mode)

/* Renames without libc, and those of libc's renameat, which are made of the same call. */

/* In an argument that no rename has: the filter lets our own calls pass. */
#define OURS 0x6d656d776f726b65ULL

#if defined(__x86_64__)
#define ARGUMENT(context, n) ((context)->uc_mcontext.gregs[(const int[]){REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8}[n]])
#define RESULT(context) ((context)->uc_mcontext.gregs[REG_RAX])
#elif defined(__aarch64__)
#define ARGUMENT(context, n) ((context)->uc_mcontext.regs[n])
#define RESULT(context) ((context)->uc_mcontext.regs[0])
#endif

#ifdef RESULT
static int rename_with(int from, const char *old, int to, const char *new, unsigned flags) {
  char joined[4400];
  struct call call = begin(RENAME, armed() ? path_at(to, new, joined, sizeof joined) : NULL, flags);
  FINISH(int, call, syscall(SYS_renameat2, from, old, to, new, flags, OURS));
}

static void on_trap(int number, siginfo_t *told, void *context_) {
  (void)number;
  ucontext_t *context = context_;
  int before = errno;
  unsigned flags = told->si_syscall == SYS_renameat2 ? ARGUMENT(context, 4) : 0;
  int result = rename_with(ARGUMENT(context, 0), (const char *)ARGUMENT(context, 1), ARGUMENT(context, 2),
                           (const char *)ARGUMENT(context, 3), flags);
  RESULT(context) = result < 0 ? -errno : result;
  errno = before;
}

#define LOADS(where) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, where)
#define IS(value, then, otherwise) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), then, otherwise)

static void set_traps(void) {
  struct sock_filter steps[] = {
      LOADS(offsetof(struct seccomp_data, nr)),
#ifdef SYS_renameat
      IS(SYS_renameat, 1, 0),
#else
      IS(SYS_renameat2, 1, 0),
#endif
      IS(SYS_renameat2, 0, 5),
      LOADS(offsetof(struct seccomp_data, args[5])),
      IS(OURS, 0, 2),
      LOADS(offsetof(struct seccomp_data, args[5]) + 4),
      IS(OURS >> 32, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog filter = {sizeof steps / sizeof *steps, steps};
  struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSYS, &action, NULL);
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
    control->traps = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}
#else
static void set_traps(void) {}
#endif
