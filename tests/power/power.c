/* A disk that forgets: what a power cut would leave of a folder, for tests. Loaded into a program with LD_PRELOAD.
 *
 * TUNEGATE_TEST_POWER_ROOT    the folder; whatever is there when the program starts counts as synced
 * TUNEGATE_TEST_POWER_DISK    an empty folder elsewhere, which gets what has been synced since, by inode:
 *                               files/INODE     the content of a file when it was last synced
 *                               folders/INODE   "INODE f|d NAME" for each entry of a folder when it was last synced
 * TUNEGATE_TEST_POWER_FORGET  what has this in its path is never synced, though the program is told that it is: so a
 *                             test can see that it would notice a missing sync
 *
 * After the program was killed, the test puts the folder together again from what is here (nothing else is certain to have
 * reached the disk) and from what lies in the folder (which may have reached it, or not).
 *
 * Only fsync and fdatasync count. Files opened with O_SYNC, sync_file_range and mapped memory count as never synced, which
 * is on the safe side; sync and syncfs end the program, since a disk that keeps everything would prove nothing. Each step
 * here is a rename, so that being killed in the middle of one leaves the state before it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static const char *disk;
static const char *forget;
/* Inodes that are held open, so that no later file gets the number of an earlier one. */
static ino_t *held;
static size_t held_count;

static void fail(const char *what) {
    fprintf(stderr, "power: %s: %s\n", what, strerror(errno));
    abort();
}

static int below_root(const char *path) {
    size_t length = strlen(root);
    return strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* Takes an O_PATH descriptor and keeps it, or closes it if that inode is held already. */
static void hold(int fd, ino_t inode) {
    for (size_t i = 0; i < held_count; i++) {
        if (held[i] == inode) {
            close(fd);
            return;
        }
    }
    held = realloc(held, (held_count + 1) * sizeof *held);
    if (held == NULL) fail("memory");
    held[held_count++] = inode;
}

static void names(const char *kind, ino_t inode, char *part, char *whole) {
    snprintf(part, PATH_MAX, "%s/%s/.new", disk, kind);
    snprintf(whole, PATH_MAX, "%s/%s/%lu", disk, kind, (unsigned long)inode);
}

static void keep_file(int fd, ino_t inode) {
    char part[PATH_MAX], whole[PATH_MAX], again[64];
    names("files", inode, part, whole);
    int from = fd;
    char byte;
    if (pread(fd, &byte, 1, 0) < 0) {
        if (errno != EBADF) fail("reading a file");
        /* Open for writing only. Never done where it is not needed: closing any descriptor of a file drops all of the
         * process's record locks on it, and SQLite lives by those. */
        snprintf(again, sizeof again, "/proc/self/fd/%d", fd);
        from = open(again, O_RDONLY | O_CLOEXEC);
        if (from < 0) fail("opening a file again");
    }
    int to = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (to < 0) fail(part);
    static char buffer[1 << 16];
    off_t at = 0;
    for (;;) {
        ssize_t got = pread(from, buffer, sizeof buffer, at);
        if (got < 0) fail("reading a file");
        if (got == 0) break;
        for (ssize_t put = 0; put < got;) {
            ssize_t more = write(to, buffer + put, (size_t)(got - put));
            if (more < 0) fail("keeping a file");
            put += more;
        }
        at += got;
    }
    close(to);
    if (from != fd) close(from);
    if (rename(part, whole) != 0) fail(whole);
}

/* Keeps the entries of a folder; with `deep`, everything below as well. `fd` is used up. */
static void keep_folder(int fd, ino_t inode, int deep) {
    char part[PATH_MAX], whole[PATH_MAX];
    names("folders", inode, part, whole);
    DIR *folder = fdopendir(fd);
    if (folder == NULL) fail("listing a folder");
    char *text = NULL;
    size_t length = 0;
    FILE *list = open_memstream(&text, &length);
    if (list == NULL) fail("memory");
    struct dirent *entry;
    while ((entry = readdir(folder)) != NULL) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) continue;
        int pin = openat(dirfd(folder), name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (pin < 0) continue; /* it has gone meanwhile */
        struct stat status;
        if (fstat(pin, &status) != 0) fail(name);
        if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) {
            close(pin);
            continue;
        }
        fprintf(list, "%lu %c %s\n", (unsigned long)status.st_ino, S_ISDIR(status.st_mode) ? 'd' : 'f', name);
        if (deep) {
            int in = openat(dirfd(folder), name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
            if (in < 0) fail(name);
            if (S_ISDIR(status.st_mode)) {
                keep_folder(in, status.st_ino, 1);
            } else {
                keep_file(in, status.st_ino);
                close(in);
            }
        }
        hold(pin, status.st_ino);
    }
    closedir(folder);
    fclose(list);
    int to = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (to < 0 || write(to, text, length) != (ssize_t)length) fail(part);
    close(to);
    free(text);
    if (rename(part, whole) != 0) fail(whole);
}

__attribute__((constructor)) static void begin(void) {
    const char *given = getenv("TUNEGATE_TEST_POWER_ROOT");
    const char *kept = getenv("TUNEGATE_TEST_POWER_DISK");
    if (given == NULL || kept == NULL) return;
    if (realpath(given, root) == NULL) fail(given);
    forget = getenv("TUNEGATE_TEST_POWER_FORGET");
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    char path[PATH_MAX];
    const char *kinds[] = {"files", "folders"};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", kept, kinds[i]);
        /* One program for one disk: a second would take what the first has not synced for synced. */
        if (mkdir(path, 0700) != 0) fail(path);
    }
    disk = kept;
    struct stat status;
    int fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) != 0) fail(root);
    keep_folder(fd, status.st_ino, 1);
    /* The whole of it is there: a program that was killed before has changed nothing yet. */
    snprintf(path, sizeof path, "%s/ready", kept);
    int ready = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (ready < 0) fail(path);
    close(ready);
}

static int sync_of(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) {
        errno = EBADF;
        return -1;
    }
    path[length] = '\0';
    if (disk == NULL || !below_root(path)) return 0;
    if (forget != NULL && strstr(path, forget) != NULL) return 0;
    struct stat status;
    if (fstat(fd, &status) != 0) return -1;
    int before = errno;
    pthread_mutex_lock(&lock);
    int pin = open(link, O_PATH | O_CLOEXEC);
    if (pin < 0) fail(path);
    hold(pin, status.st_ino);
    if (S_ISDIR(status.st_mode)) {
        int again = open(link, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (again < 0) fail(path);
        keep_folder(again, status.st_ino, 0);
    } else if (S_ISREG(status.st_mode)) {
        keep_file(fd, status.st_ino);
    }
    pthread_mutex_unlock(&lock);
    errno = before;
    return 0;
}

/* The real disk is left in peace: only what is kept here counts. */
int fsync(int fd) { return sync_of(fd); }

int fdatasync(int fd) { return sync_of(fd); }

void sync(void) {
    errno = ENOSYS;
    fail("sync");
}

int syncfs(int fd) {
    (void)fd;
    errno = ENOSYS;
    fail("syncfs");
    return -1;
}
