/* Stops or fails a process at a chosen file-system call. Preloaded with LD_PRELOAD.
 *
 * Calls that change what lies below an armed directory are counted, from 1. At the n-th one the
 * process kills itself ("kill"), writes half of what it was to write and kills itself ("torn"),
 * or the call fails: once ("eio"), or from there on with every call that needs room ("enospc").
 *
 * Every function goes to the kernel directly, so none counts twice. 64-bit Linux alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(long) == 8, "offsets are passed to the kernel in one register");

enum mode { COUNT, KILL, TORN, ENOSPC_ON, EIO_ONCE };
enum verdict { PASS, FAIL, HALF };

/* Shared with forked children, so that a parent can read what a killed child had done. */
struct record {
    atomic_long calls;
    char op[16];
    char path[PATH_MAX];
};

static struct record *record;
static atomic_int armed;
static char root[PATH_MAX];
static size_t root_length;
static long target;
static enum mode chosen;
static int log_fd = -1;

__attribute__((constructor)) static void set_up(void)
{
    record = mmap(NULL, sizeof *record, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (record == MAP_FAILED)
        abort();
}

void fault_forget(void)
{
    atomic_store(&record->calls, 0);
    record->op[0] = record->path[0] = '\0';
}

/* `log` gets a line where a call begins and one where it ends; -1 for none. */
int fault_arm(const char *directory, long n, const char *mode, int log)
{
    static const char *const names[] = {"count", "kill", "torn", "enospc", "eio"};
    int found = -1;
    for (int i = 0; i < 5; i++)
        if (strcmp(mode, names[i]) == 0)
            found = i;
    if (found < 0 || strlen(directory) >= sizeof root)
        return -1;
    strcpy(root, directory);
    root_length = strlen(root);
    chosen = found;
    target = n;
    log_fd = log;
    fault_forget();
    atomic_store(&armed, 1);
    return 0;
}

void fault_disarm(void) { atomic_store(&armed, 0); }

/* Operation and path of the n-th call; empty until it came. */
const char *fault_op(void) { return record->op; }
const char *fault_path(void) { return record->path; }

static int is_below(const char *path)
{
    return path[0] && strncmp(path, root, root_length) == 0 &&
           (path[root_length] == '/' || path[root_length] == '\0');
}

static void path_of_fd(int fd, char *out)
{
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    out[length < 0 ? 0 : length] = '\0';
}

static void resolve(int directory, const char *path, char *out)
{
    char start[PATH_MAX];
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    if (directory == AT_FDCWD) {
        if (!getcwd(start, sizeof start))
            start[0] = '\0';
    } else
        path_of_fd(directory, start);
    if (snprintf(out, PATH_MAX, "%s/%s", start, path) >= PATH_MAX)
        out[0] = '\0';
}

static void log_line(const char *format, ...)
{
    char line[2 * PATH_MAX + 64];
    va_list arguments;
    if (log_fd < 0)
        return;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    syscall(SYS_write, log_fd, line, (size_t)length);
}

static void die(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Count a call and say what becomes of it. `room`: whether it needs room on the disk. */
static enum verdict gate(const char *op, const char *path, const char *to, int room, long *n)
{
    int kept = errno;
    int below = is_below(path);
    *n = 0;
    if (!below && !(to && is_below(to)))
        return PASS;
    *n = atomic_fetch_add(&record->calls, 1) + 1;
    log_line("begin\t%ld\t%s\t%s\t%s\n", *n, op, path, to ? to : "");
    errno = kept;
    int at = *n == target;
    if (at) {
        snprintf(record->path, sizeof record->path, "%s", below ? path : to);
        snprintf(record->op, sizeof record->op, "%s", op);
    }
    if (at && chosen == KILL)
        die();
    if (at && chosen == TORN)
        return HALF;
    if (at && chosen == EIO_ONCE) {
        errno = EIO;
        return FAIL;
    }
    if (chosen == ENOSPC_ON && (at || (*n > target && room))) {
        errno = ENOSPC;
        return FAIL;
    }
    return PASS;
}

static long ended(long n, long result)
{
    int kept = errno;
    if (n)
        log_line("end\t%ld\t%ld\n", n, result);
    errno = kept;
    return result;
}

/* Run `call` unless the gate says otherwise. A call that writes nothing cannot be torn. */
#define GATED(op, path, to, room, call)                          \
    do {                                                         \
        long n_;                                                 \
        enum verdict verdict_ = gate(op, path, to, room, &n_);   \
        if (verdict_ == HALF)                                    \
            die();                                               \
        return ended(n_, verdict_ == FAIL ? -1 : (call));        \
    } while (0)

static int on(void) { return atomic_load_explicit(&armed, memory_order_relaxed); }

/* ---- opening ---- */

static int open_at(const char *op, int directory, const char *path, int flags, mode_t mode)
{
    int changes = flags & (O_CREAT | O_TRUNC) || (flags & O_ACCMODE) != O_RDONLY;
    if (!on() || !changes)
        return syscall(SYS_openat, directory, path, flags, mode);
    char full[PATH_MAX];
    struct stat there;
    int kept = errno;
    resolve(directory, path, full);
    int room = (flags & O_CREAT) && stat(full, &there) != 0;
    errno = kept;
    GATED(op, full, NULL, room, syscall(SYS_openat, directory, path, flags, mode));
}

#define MODE_ARGUMENT                                                   \
    mode_t mode = 0;                                                    \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {          \
        va_list arguments;                                              \
        va_start(arguments, flags);                                     \
        mode = va_arg(arguments, mode_t);                               \
        va_end(arguments);                                              \
    }

int open(const char *path, int flags, ...)
{
    MODE_ARGUMENT
    return open_at("open", AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...)
{
    MODE_ARGUMENT
    return open_at("open", AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int directory, const char *path, int flags, ...)
{
    MODE_ARGUMENT
    return open_at("open", directory, path, flags, mode);
}
int openat64(int directory, const char *path, int flags, ...)
{
    MODE_ARGUMENT
    return open_at("open", directory, path, flags | O_LARGEFILE, mode);
}
/* What fortified callers call. */
int __open_2(const char *path, int flags) { return open_at("open", AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_at("open", AT_FDCWD, path, flags, 0); }
int __openat_2(int directory, const char *path, int flags)
{
    return open_at("open", directory, path, flags, 0);
}
int __openat64_2(int directory, const char *path, int flags)
{
    return open_at("open", directory, path, flags, 0);
}
int creat(const char *path, mode_t mode)
{
    return open_at("open", AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* ---- writing ---- */

/* `offset` is -1 where the file's own position counts. */
static ssize_t write_vector(const char *op, int fd, const struct iovec *parts, int count, off_t offset)
{
    char path[PATH_MAX];
    long n;
    if (!on())
        goto through;
    int kept = errno;
    path_of_fd(fd, path);
    errno = kept;
    switch (gate(op, path, NULL, 1, &n)) {
    case FAIL:
        return ended(n, -1);
    case HALF: {
        size_t total = 0;
        for (int i = 0; i < count; i++)
            total += parts[i].iov_len;
        size_t left = total / 2;
        for (int i = 0; i < count && left; i++) {
            size_t part = parts[i].iov_len < left ? parts[i].iov_len : left;
            if (offset < 0)
                syscall(SYS_write, fd, parts[i].iov_base, part);
            else {
                syscall(SYS_pwrite64, fd, parts[i].iov_base, part, offset);
                offset += part;
            }
            left -= part;
        }
        die();
    }
    case PASS:
        break;
    }
    if (offset < 0)
        return ended(n, syscall(SYS_writev, fd, parts, count));
    return ended(n, syscall(SYS_pwritev, fd, parts, count, offset, 0L));
through:
    if (offset < 0)
        return syscall(SYS_writev, fd, parts, count);
    return syscall(SYS_pwritev, fd, parts, count, offset, 0L);
}

ssize_t write(int fd, const void *data, size_t size)
{
    if (!on())
        return syscall(SYS_write, fd, data, size);
    struct iovec part = {(void *)data, size};
    return write_vector("write", fd, &part, 1, -1);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    struct iovec part = {(void *)data, size};
    if (!on() || offset < 0)
        return syscall(SYS_pwrite64, fd, data, size, offset);
    return write_vector("write", fd, &part, 1, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    return pwrite(fd, data, size, offset);
}
ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return write_vector("write", fd, parts, count, -1);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    if (offset < 0)
        return syscall(SYS_pwritev, fd, parts, count, offset, 0L);
    return write_vector("write", fd, parts, count, offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return pwritev(fd, parts, count, offset);
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    if (flags) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return offset == -1 ? writev(fd, parts, count) : pwritev(fd, parts, count, offset);
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    return pwritev2(fd, parts, count, offset, flags);
}

/* Copies within the kernel count, but are not torn. */
#define BY_FD(op, fd, room, call)       \
    do {                                \
        char path_[PATH_MAX];           \
        int kept_ = errno;              \
        if (!on())                      \
            return (call);              \
        path_of_fd(fd, path_);          \
        errno = kept_;                  \
        GATED(op, path_, NULL, room, call); \
    } while (0)

ssize_t sendfile(int out, int in, off_t *offset, size_t size)
{
    BY_FD("write", out, 1, syscall(SYS_sendfile, out, in, offset, size));
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t size)
{
    return sendfile(out, in, offset, size);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags)
{
    BY_FD("write", out, 1, syscall(SYS_copy_file_range, in, from, out, to, size, flags));
}

/* ---- flushing and sizes ---- */

int fsync(int fd) { BY_FD("fsync", fd, 0, syscall(SYS_fsync, fd)); }
int fdatasync(int fd) { BY_FD("fsync", fd, 0, syscall(SYS_fdatasync, fd)); }
int ftruncate(int fd, off_t size) { BY_FD("truncate", fd, 0, syscall(SYS_ftruncate, fd, size)); }
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }
int fallocate(int fd, int mode, off_t offset, off_t size)
{
    BY_FD("allocate", fd, 1, syscall(SYS_fallocate, fd, mode, offset, size));
}
int fallocate64(int fd, int mode, off64_t offset, off64_t size)
{
    return fallocate(fd, mode, offset, size);
}
int posix_fallocate(int fd, off_t offset, off_t size)
{
    int kept = errno;
    int error = fallocate(fd, 0, offset, size) == 0 ? 0 : errno;
    errno = kept;
    return error;
}
int posix_fallocate64(int fd, off64_t offset, off64_t size)
{
    return posix_fallocate(fd, offset, size);
}

/* ---- names ---- */

#define BY_PATH(op, directory, path, room, call) \
    do {                                         \
        char full_[PATH_MAX];                    \
        int kept_ = errno;                       \
        if (!on())                               \
            return (call);                       \
        resolve(directory, path, full_);         \
        errno = kept_;                           \
        GATED(op, full_, NULL, room, call);      \
    } while (0)

#define BY_PATHS(op, from_directory, from, to_directory, to, room, call) \
    do {                                                                 \
        char from_[PATH_MAX], to_[PATH_MAX];                             \
        int kept_ = errno;                                               \
        if (!on())                                                       \
            return (call);                                               \
        resolve(from_directory, from, from_);                            \
        resolve(to_directory, to, to_);                                  \
        errno = kept_;                                                   \
        GATED(op, from_, to_, room, call);                               \
    } while (0)

int truncate(const char *path, off_t size)
{
    BY_PATH("truncate", AT_FDCWD, path, 0, syscall(SYS_truncate, path, size));
}
int truncate64(const char *path, off64_t size) { return truncate(path, size); }

int renameat2(int from_directory, const char *from, int to_directory, const char *to, unsigned flags)
{
    BY_PATHS("rename", from_directory, from, to_directory, to, 0,
             syscall(SYS_renameat2, from_directory, from, to_directory, to, flags));
}
int renameat(int from_directory, const char *from, int to_directory, const char *to)
{
    return renameat2(from_directory, from, to_directory, to, 0);
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int from_directory, const char *from, int to_directory, const char *to, int flags)
{
    BY_PATHS("link", from_directory, from, to_directory, to, 1,
             syscall(SYS_linkat, from_directory, from, to_directory, to, flags));
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int directory, const char *path, int flags)
{
    BY_PATH(flags & AT_REMOVEDIR ? "rmdir" : "unlink", directory, path, 0,
            syscall(SYS_unlinkat, directory, path, flags));
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
/* remove() calls unlink and rmdir within libc, where no shim sees it. */
int remove(const char *path)
{
    struct stat found;
    if (lstat(path, &found) == 0 && S_ISDIR(found.st_mode))
        return rmdir(path);
    return unlink(path);
}

int mkdirat(int directory, const char *path, mode_t mode)
{
    BY_PATH("mkdir", directory, path, 1, syscall(SYS_mkdirat, directory, path, mode));
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
