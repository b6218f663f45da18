/* What a ledger's files and the network got to see, in order: for tests about the loss of power.
 *
 * Preloaded into the gateway. Calls go on to the kernel by number, so nothing here calls what it interposes. For 64-bit
 * Linux with glibc.
 *
 * POWER_DIRECTORY  real path of the directory whose files are followed; SQLite's -shm is not, as it never survives
 * POWER_TRACE      gets one record after the other, as tests/it/power/trace.rs reads them; appended to; may be unset
 * POWER_LIE        syncs of files whose name ends so do nothing, and leave no record: a bug planted on purpose
 * POWER_KILL_AT    the process kills itself at this operation on files, counted from 1,
 * POWER_KILL_IN    whose name ends so (any if unset),
 * POWER_KILL_PART  having done so many thousandths of it
 *
 * One lock makes the order total. An operation on a file is recorded and done under it. A sync is done without it,
 * between the records of its begin and its end. What goes to a socket is recorded before it goes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { DESCRIPTORS = 65536, PIECES = 128 };

enum kind { START = 1, OPEN, WRITE, TRUNCATE, SYNC_BEGIN, SYNC_END, UNLINK, SEND };

struct record {
    uint32_t kind;
    uint32_t handle; /* of an open file */
    uint64_t value;  /* offset, length, number of the sync, or whether the file was created */
    uint64_t length; /* of the data behind the record */
};

/* What is known of a descriptor since it was opened, or first written to. */
struct descriptor {
    enum { UNKNOWN, OTHER, FOLLOWED, SOCKET } is;
    uint32_t handle;
    int lies, counts;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct descriptor descriptors[DESCRIPTORS];
static const char *directory, *lie, *kill_in;
static int trace = -1;
static uint32_t handles;
static uint64_t syncs, operations, kill_at, kill_part;
static int dying;

static void put(enum kind kind, uint32_t handle, uint64_t value, const struct iovec *data, int pieces) {
    struct iovec all[PIECES + 1];
    uint64_t length = 0;
    if (trace < 0) return;
    if (pieces > PIECES) abort();
    for (int i = 0; i < pieces; i++) {
        all[i + 1] = data[i];
        length += data[i].iov_len;
    }
    struct record record = {kind, handle, value, length};
    all[0] = (struct iovec){&record, sizeof record};
    /* Appended whole or not at all: a gap would make the trace say what never was. */
    if (syscall(SYS_writev, trace, all, pieces + 1) != (long)(sizeof record + length)) abort();
}

static void put_bytes(enum kind kind, uint32_t handle, uint64_t value, const void *bytes, size_t length) {
    struct iovec piece = {(void *)bytes, length};
    put(kind, handle, value, &piece, 1);
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("POWER_TRACE"), *at = getenv("POWER_KILL_AT"), *part = getenv("POWER_KILL_PART");
    directory = getenv("POWER_DIRECTORY");
    lie = getenv("POWER_LIE");
    kill_in = getenv("POWER_KILL_IN");
    if (!kill_in) kill_in = "";
    kill_at = at ? strtoull(at, NULL, 10) : 0;
    kill_part = part ? strtoull(part, NULL, 10) : 0;
    if (!directory) abort();
    if (!path) return;
    int opened = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    /* Out of the way: a program may expect low numbers. */
    trace = fcntl(opened, F_DUPFD_CLOEXEC, 500);
    if (trace < 0) abort();
    syscall(SYS_close, opened);
    put(START, 0, getpid(), NULL, 0);
}

static int ends_with(const char *name, const char *tail) {
    size_t length = strlen(name), end = strlen(tail);
    return end <= length && strcmp(name + length - end, tail) == 0;
}

/* How much of an operation of this size is done before the process dies, or all of it. */
static uint64_t admit(int counts, uint64_t size) {
    if (!counts || ++operations != kill_at) return size;
    dying = 1;
    return size * kill_part / 1000;
}

/* The lock is never given free, so no other thread gets to do anything. */
static void die_if_dying(void) {
    if (!dying) return;
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* The path below the directory, empty for the directory itself, or NULL for what is not followed. */
static const char *followed(const char *path) {
    size_t length = strlen(directory);
    if (strncmp(path, directory, length) != 0) return NULL;
    if (path[length] == 0) return path + length;
    if (path[length] != '/' || ends_with(path, "-shm")) return NULL;
    return path + length + 1;
}

static struct descriptor *known(int fd) {
    static struct descriptor other = {OTHER, 0, 0, 0};
    if (fd < 0 || fd >= DESCRIPTORS || fd == trace) return &other;
    struct descriptor *descriptor = &descriptors[fd];
    if (descriptor->is == UNKNOWN) {
        struct sockaddr_storage peer = {0};
        socklen_t size = sizeof peer;
        int before = errno;
        int has_peer = getpeername(fd, (struct sockaddr *)&peer, &size) == 0;
        descriptor->is = has_peer && peer.ss_family == AF_INET ? SOCKET : OTHER;
        errno = before;
    }
    return descriptor;
}

static int open_at(const char *path, int flags, mode_t mode) {
    const char *name = followed(path);
    if (!name) return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    pthread_mutex_lock(&lock);
    int creates = (flags & O_CREAT) && access(path, F_OK) != 0;
    int counts = ends_with(name, kill_in);
    if (creates && !admit(counts, 1)) die_if_dying();
    int fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= DESCRIPTORS) abort();
    if (fd >= 0) {
        int lies = lie && ends_with(name, lie);
        descriptors[fd] = (struct descriptor){FOLLOWED, ++handles, lies, counts};
        put_bytes(OPEN, handles, creates, name, strlen(name));
        if (flags & O_TRUNC) put(TRUNCATE, handles, 0, NULL, 0);
    }
    die_if_dying();
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE(flags)                        \
    mode_t mode = 0;                       \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list list;                      \
        va_start(list, flags);             \
        mode = va_arg(list, mode_t);       \
        va_end(list);                      \
    }

int open(const char *path, int flags, ...) {
    MODE(flags)
    return open_at(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags)
    return open_at(path, flags, mode);
}

int close(int fd) {
    pthread_mutex_lock(&lock);
    if (fd >= 0 && fd < DESCRIPTORS) descriptors[fd].is = UNKNOWN;
    int result = syscall(SYS_close, fd);
    pthread_mutex_unlock(&lock);
    return result;
}

static ssize_t write_at(int fd, const struct descriptor *file, const void *data, size_t size, off_t offset) {
    uint64_t part = admit(file->counts, size);
    put_bytes(WRITE, file->handle, offset, data, part);
    ssize_t written = syscall(SYS_pwrite64, fd, data, part, offset);
    /* The record is there already, and would be wrong. */
    if (written != (ssize_t)part) abort();
    die_if_dying();
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    pthread_mutex_lock(&lock);
    const struct descriptor *file = known(fd);
    ssize_t result = file->is == FOLLOWED ? write_at(fd, file, data, size, offset)
                                          : syscall(SYS_pwrite64, fd, data, size, offset);
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return pwrite64(fd, data, size, offset);
}

/* What goes to a socket is recorded; true if the descriptor is a followed file. */
static int sends(int fd, const struct iovec *data, int pieces) {
    const struct descriptor *to = known(fd);
    if (to->is == SOCKET) put(SEND, 0, 0, data, pieces);
    return to->is == FOLLOWED;
}

ssize_t write(int fd, const void *data, size_t size) {
    struct iovec piece = {(void *)data, size};
    pthread_mutex_lock(&lock);
    if (sends(fd, &piece, 1)) {
        off_t offset = lseek(fd, 0, SEEK_CUR);
        ssize_t written = write_at(fd, known(fd), data, size, offset);
        lseek(fd, offset + written, SEEK_SET);
        pthread_mutex_unlock(&lock);
        return written;
    }
    pthread_mutex_unlock(&lock);
    return syscall(SYS_write, fd, data, size);
}

ssize_t writev(int fd, const struct iovec *data, int pieces) {
    pthread_mutex_lock(&lock);
    if (sends(fd, data, pieces)) abort(); /* SQLite and the gateway don't. */
    pthread_mutex_unlock(&lock);
    return syscall(SYS_writev, fd, data, pieces);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
    struct iovec piece = {(void *)data, size};
    pthread_mutex_lock(&lock);
    sends(fd, &piece, 1);
    pthread_mutex_unlock(&lock);
    return syscall(SYS_sendto, fd, data, size, flags, to, length);
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
    return sendto(fd, data, size, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    pthread_mutex_lock(&lock);
    sends(fd, message->msg_iov, message->msg_iovlen);
    pthread_mutex_unlock(&lock);
    return syscall(SYS_sendmsg, fd, message, flags);
}

int ftruncate64(int fd, off64_t length) {
    pthread_mutex_lock(&lock);
    const struct descriptor *file = known(fd);
    if (file->is == FOLLOWED) {
        if (!admit(file->counts, 1)) die_if_dying();
        put(TRUNCATE, file->handle, length, NULL, 0);
    }
    int result = syscall(SYS_ftruncate, fd, length);
    if (file->is == FOLLOWED && result != 0) abort();
    die_if_dying();
    pthread_mutex_unlock(&lock);
    return result;
}

int ftruncate(int fd, off_t length) {
    return ftruncate64(fd, length);
}

static int sync_by(long call, int fd) {
    pthread_mutex_lock(&lock);
    struct descriptor file = *known(fd);
    uint64_t number = ++syncs;
    if (file.is == FOLLOWED) {
        if (!admit(file.counts, 1)) die_if_dying();
        if (!file.lies) put(SYNC_BEGIN, file.handle, number, NULL, 0);
    }
    int last = dying;
    if (!last) pthread_mutex_unlock(&lock);
    int result = file.is == FOLLOWED && file.lies ? 0 : syscall(call, fd);
    if (!last) pthread_mutex_lock(&lock);
    if (file.is == FOLLOWED && !file.lies && result == 0) put(SYNC_END, file.handle, number, NULL, 0);
    die_if_dying();
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int fd) {
    return sync_by(SYS_fsync, fd);
}

int fdatasync(int fd) {
    return sync_by(SYS_fdatasync, fd);
}

int unlink(const char *path) {
    const char *name = followed(path);
    if (!name) return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    pthread_mutex_lock(&lock);
    int there = access(path, F_OK) == 0;
    if (there && !admit(ends_with(name, kill_in), 1)) die_if_dying();
    int result = syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (result == 0) put_bytes(UNLINK, 0, 0, name, strlen(name));
    die_if_dying();
    pthread_mutex_unlock(&lock);
    return result;
}
