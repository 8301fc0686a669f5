"""
A layer between one process and the C library: its clock is set back, its disk fails for a while.

The layer is compiled by the C compiler of this machine and preloaded; what it does is told through
a page of memory that both processes share. All else on the machine goes on as before.
"""

import ctypes
import errno
import mmap
import struct
import subprocess
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static struct { volatile long clock_seconds, error, syncs; } nothing, *told = &nothing;
static const char *folder = "";

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SHIM_CONTROL"), *below = getenv("SHIM_FOLDER");
    int fd = path ? open(path, O_RDWR) : -1;
    void *page = fd < 0 ? MAP_FAILED
        : mmap(0, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) told = page;
    if (fd >= 0) close(fd);
    if (below) folder = below;
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

static int is_below(const char *path) {
    return *folder && !strncmp(path, folder, strlen(folder));
}
static int is_open_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}
#define FAIL_IF(condition) if (told->error && (condition)) { errno = told->error; return -1; }

/* --- the disk --- */
static int sync_fails(int fd) {
    return told->syncs > 0 && is_open_below(fd) && __sync_sub_and_fetch(&told->syncs, 1) == 0;
}
int fsync(int fd) {
    if (sync_fails(fd)) { errno = EIO; return -1; }
    FAIL_IF(is_open_below(fd))
    return REAL(int, fsync, int)(fd);
}
int fdatasync(int fd) {
    if (sync_fails(fd)) { errno = EIO; return -1; }
    FAIL_IF(is_open_below(fd))
    return REAL(int, fdatasync, int)(fd);
}
ssize_t write(int fd, const void *data, size_t size) {
    FAIL_IF(is_open_below(fd))
    return REAL(ssize_t, write, int, const void *, size_t)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    FAIL_IF(is_open_below(fd))
    return REAL(ssize_t, pwrite, int, const void *, size_t, off_t)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    FAIL_IF(is_open_below(fd))
    return REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t)(fd, data, size, at);
}
int rename(const char *from, const char *to) {
    FAIL_IF(is_below(to))
    return REAL(int, rename, const char *, const char *)(from, to);
}
#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    FAIL_IF((flags & O_CREAT) && access(path, F_OK) && is_below(path)) \
    return REAL(int, name, const char *, int, ...)(path, flags, mode); \
}
OPEN(open)
OPEN(open64)

/* --- the clock; a deadline by it is one of the real clock --- */
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(int, clock_gettime, clockid_t, struct timespec *)(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += told->clock_seconds;
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    int result = REAL(int, gettimeofday, struct timeval *, void *)(now, zone);
    now->tv_sec += told->clock_seconds;
    return result;
}
time_t time(time_t *into) {
    time_t now = REAL(time_t, time, time_t *)(0) + told->clock_seconds;
    if (into) *into = now;
    return now;
}
static struct timespec really(const struct timespec *deadline) {
    struct timespec real = *deadline;
    if (real.tv_sec > 1000000000) real.tv_sec -= told->clock_seconds;
    return real;
}
int sem_timedwait(sem_t *semaphore, const struct timespec *deadline) {
    struct timespec real = really(deadline);
    return REAL(int, sem_timedwait, sem_t *, const struct timespec *)(semaphore, &real);
}
int pthread_cond_timedwait(pthread_cond_t *one, pthread_mutex_t *lock, const struct timespec *at) {
    struct timespec real = really(at);
    return ((int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))dlvsym(
        RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2"))(one, lock, &real);
}
"""

_PAGE = struct.Struct("lll")


class Shim:
    """
    What a process is told of clock and disk; pass it ``environment``.

    Args:
        folder: For what the layer needs.
        store: Where the disk can fail.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        source, library, control = (folder / f"shim.{suffix}" for suffix in ("c", "so", "page"))
        source.write_text(SOURCE)
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
        control.write_bytes(bytes(_PAGE.size))
        with control.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _PAGE.size)
        self.environment = {
            "LD_PRELOAD": str(library),
            "SHIM_CONTROL": str(control),
            "SHIM_FOLDER": str(store),
        }

    def set_clock(self, seconds: int) -> None:
        """Let the clock say so much more than it does; monotonic ones go on."""
        self._tell(0, seconds)

    def fail(self, error: int = errno.EIO) -> None:
        """Let everything that writes below the store fail; 0 lets it work again."""
        self._tell(1, error)

    def fail_sync(self, number: int) -> None:
        """Let one sync below the store fail: 1 for the next; 0 for none."""
        self._tell(2, number)

    def _tell(self, index: int, value: int) -> None:
        size = ctypes.sizeof(ctypes.c_long)
        struct.pack_into("l", self._page, index * size, value)
