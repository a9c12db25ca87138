/* Counts the writing calls of all processes below one folder, and at a chosen one kills the process
 * or lets the call fail, once or from then on. Loaded with LD_PRELOAD; told what to do through a file that is mapped
 * ($FAULT_CONTROL; its layout is faults.injector.Control's). Heartbeats are not counted: a thread
 * writes them by the clock. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING = 0, KILL = -1, HALF = -2 }; /* any other action is the errno of the call */
enum { GO, FAIL, LAST };

static struct control {
    long calls, at;
    int action, fired, lasting;
    char under[1024], what[1024];
} *control;

__attribute__((constructor)) static void map_control(void) {
    const char *path = getenv("FAULT_CONTROL");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *place = mmap(0, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        control = place == MAP_FAILED ? 0 : place;
        close(file);
    }
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Whether the call goes on, fails, or is the last one of this process. */
static int turn(const char *call, const char *path) {
    static const char beat[] = "heartbeat";
    size_t length = strlen(path), tail = sizeof beat - 1;
    if (!control || !control->under[0] || strncmp(path, control->under, strlen(control->under)) ||
        (length >= tail && !strcmp(path + length - tail, beat)))
        return GO;
    long number = __atomic_add_fetch(&control->calls, 1, __ATOMIC_SEQ_CST);
    if (number != control->at && !(control->lasting && control->at && number > control->at))
        return GO;
    control->fired = getpid();
    snprintf(control->what, sizeof control->what, "%s %s", call, path);
    if (control->action == KILL)
        die();
    if (control->action == HALF)
        return LAST;
    errno = control->action;
    return control->action == NOTHING ? GO : FAIL;
}

static const char *name_of(int file, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    buffer[length < 0 ? 0 : length] = 0;
    return buffer;
}

static const char *full(int folder, const char *path, char *buffer) {
    if (path[0] == '/')
        return path;
    char base[PATH_MAX] = "";
    if (folder != AT_FDCWD)
        name_of(folder, base);
    else if (!getcwd(base, sizeof base))
        return path;
    snprintf(buffer, PATH_MAX, "%s/%s", base, path);
    return buffer;
}

/* The function of the C library behind one of ours. */
#define NEXT(name)                                                                                 \
    static __typeof__(&name) next;                                                                 \
    if (!next)                                                                                     \
        next = dlsym(RTLD_NEXT, #name)

/* One that is done whole or not at all. */
#define WHOLE(type, failed, name, parameters, arguments, counts, path)                             \
    type name parameters {                                                                         \
        NEXT(name);                                                                                \
        char buffer[PATH_MAX] __attribute__((unused));                                             \
        int way = (counts) ? turn(#name, path) : GO;                                               \
        if (way == FAIL)                                                                           \
            return failed;                                                                         \
        type result = next arguments;                                                              \
        if (way == LAST)                                                                           \
            die();                                                                                 \
        return result;                                                                             \
    }

#define PATH_CALL(name, parameters, arguments, folder, path)                                       \
    WHOLE(int, -1, name, parameters, arguments, 1, full(folder, path, buffer))
#define FILE_CALL(name, parameters, arguments)                                                     \
    WHOLE(int, -1, name, parameters, arguments, 1, name_of(file, buffer))

PATH_CALL(rename, (const char *a, const char *b), (a, b), AT_FDCWD, b)
PATH_CALL(renameat, (int f, const char *a, int g, const char *b), (f, a, g, b), g, b)
PATH_CALL(renameat2, (int f, const char *a, int g, const char *b, unsigned o), (f, a, g, b, o), g, b)
PATH_CALL(link, (const char *a, const char *b), (a, b), AT_FDCWD, b)
PATH_CALL(linkat, (int f, const char *a, int g, const char *b, int o), (f, a, g, b, o), g, b)
PATH_CALL(symlink, (const char *a, const char *b), (a, b), AT_FDCWD, b)
PATH_CALL(unlink, (const char *a), (a), AT_FDCWD, a)
PATH_CALL(unlinkat, (int f, const char *a, int o), (f, a, o), f, a)
PATH_CALL(mkdir, (const char *a, mode_t mode), (a, mode), AT_FDCWD, a)
PATH_CALL(mkdirat, (int f, const char *a, mode_t mode), (f, a, mode), f, a)
PATH_CALL(rmdir, (const char *a), (a), AT_FDCWD, a)
PATH_CALL(truncate, (const char *a, off_t size), (a, size), AT_FDCWD, a)
PATH_CALL(truncate64, (const char *a, off64_t size), (a, size), AT_FDCWD, a)
FILE_CALL(ftruncate, (int file, off_t size), (file, size))
FILE_CALL(ftruncate64, (int file, off64_t size), (file, size))
FILE_CALL(fsync, (int file), (file))
FILE_CALL(fdatasync, (int file), (file))

/* Opening counts where something may be written. */
#define WRITES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)
#define OPENS(name, parameters, arguments, folder)                                                 \
    int name parameters {                                                                          \
        NEXT(name);                                                                                \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = va_arg(rest, mode_t);                                                        \
        va_end(rest);                                                                              \
        char buffer[PATH_MAX];                                                                     \
        int way = flags & WRITES ? turn(#name, full(folder, path, buffer)) : GO;                   \
        if (way == FAIL)                                                                           \
            return -1;                                                                             \
        int result = next arguments;                                                               \
        if (way == LAST)                                                                           \
            die();                                                                                 \
        return result;                                                                             \
    }

OPENS(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPENS(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPENS(openat, (int f, const char *path, int flags, ...), (f, path, flags, mode), f)
OPENS(openat64, (int f, const char *path, int flags, ...), (f, path, flags, mode), f)
WHOLE(FILE *, 0, fopen, (const char *a, const char *mode), (a, mode), strpbrk(mode, "wa+"),
      full(AT_FDCWD, a, buffer))
WHOLE(FILE *, 0, fopen64, (const char *a, const char *mode), (a, mode), strpbrk(mode, "wa+"),
      full(AT_FDCWD, a, buffer))

/* One that can be done by halves. */
#define WRITE(name, parameters, arguments, halved)                                                 \
    ssize_t name parameters {                                                                      \
        NEXT(name);                                                                                \
        char buffer[PATH_MAX];                                                                     \
        int way = turn(#name, name_of(file, buffer));                                              \
        if (way == FAIL)                                                                           \
            return -1;                                                                             \
        if (way == LAST) {                                                                         \
            next halved;                                                                           \
            die();                                                                                 \
        }                                                                                          \
        return next arguments;                                                                     \
    }

WRITE(write, (int file, const void *data, size_t n), (file, data, n), (file, data, n / 2))
WRITE(pwrite, (int file, const void *data, size_t n, off_t at), (file, data, n, at),
      (file, data, n / 2, at))
WRITE(pwrite64, (int file, const void *data, size_t n, off64_t at), (file, data, n, at),
      (file, data, n / 2, at))
WRITE(writev, (int file, const struct iovec *parts, int n), (file, parts, n), (file, parts, n / 2))
WRITE(sendfile, (int file, int from, off_t *at, size_t n), (file, from, at, n),
      (file, from, at, n / 2))
WRITE(sendfile64, (int file, int from, off64_t *at, size_t n), (file, from, at, n),
      (file, from, at, n / 2))
