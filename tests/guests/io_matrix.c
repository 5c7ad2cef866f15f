/* Every form of read, write, seek and size change, with good and bad arguments: prints what came out. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char *hole, *edge; /* `edge`: one page that is followed by a hole */
static int fd, ro, wo, dir, path;
static char buf[1 << 16];

static void show(const char *what, long long r)
{
    if (r < 0)
        printf("%s: %s\n", what, strerrorname_np(errno));
    else
        printf("%s: %lld\n", what, r);
}
#define T(call) (errno = 0, show(#call, (long long)(call)))

static void state(void)
{
    struct stat st;
    fstat(fd, &st);
    printf("  size %lld at %lld\n", (long long)st.st_size, (long long)lseek(fd, 0, SEEK_CUR));
}

static void content(long long from, int n)
{
    unsigned sum = 0;
    char b[256];
    int r = pread(fd, b, n, from);
    for (int i = 0; i < r; i++)
        sum = sum * 31 + (unsigned char)b[i];
    printf("  %d bytes at %lld: %08x\n", r, from, sum);
}

static void reads(void)
{
    printf("# read\n");
    struct iovec v[3] = {{buf, 3}, {buf + 10, 4}, {buf + 20, 5}};
    struct iovec bad[3] = {{buf, 3}, {hole, 4}, {buf + 20, 5}};
    struct iovec neg[2] = {{buf, 3}, {buf, (size_t)-1}};
    T(write(fd, "abcdefghijklmnopqrstuvwxyz", 26));
    T(lseek(fd, 0, SEEK_SET));
    T(read(fd, buf, 10)); state();
    T(read(fd, buf, 100)); state();
    T(read(fd, buf, 100));
    T(pread(fd, buf, 5, 3)); printf("  %.5s\n", buf);
    T(pread(fd, buf, 5, 100));
    T(pread(fd, buf, 5, -1));
    T(pread(fd, buf, 0, 0));
    T(pread(fd, buf, (size_t)-1, 0));
    T(pread(fd, buf, 5, INT64_MAX));
    T(lseek(fd, 0, SEEK_SET));
    T(read(fd, hole, 5)); state();
    T(read(fd, hole, 0));
    T(read(fd, NULL, 5));
    T(read(fd, edge + 4096 - 4, 10)); state();
    printf("  %.4s\n", edge + 4096 - 4);
    T(lseek(fd, 20, SEEK_SET));
    T(read(fd, edge + 4096 - 6, 10)); state();
    T(lseek(fd, 26, SEEK_SET));
    T(read(fd, hole, 10));
    T(lseek(fd, 1, SEEK_SET));
    memset(buf, '.', 30);
    T(readv(fd, v, 3)); printf("  %.25s\n", buf); state();
    T(readv(fd, v, 0));
    T(readv(fd, v, -1));
    T(readv(fd, v, 1025));
    T(readv(fd, (void *)hole, 2));
    T(preadv(fd, bad, 3, 0));
    T(preadv(fd, bad + 1, 2, 0));
    T(preadv(fd, neg, 2, 0));
    T(preadv(fd, v, 3, 23)); printf("  %.25s\n", buf);
    T(preadv(fd, v, 3, -5));
    T(preadv2(fd, v, 3, 2, 0));
    T(lseek(fd, 4, SEEK_SET));
    T(preadv2(fd, v, 3, -1, 0)); state();
    T(preadv2(fd, v, 3, 0, 0x40000000));
    T(preadv2(fd, v, 3, 0, RWF_HIPRI | RWF_DSYNC));
    T(read(wo, buf, 1));
    T(pread(wo, buf, 1, 0));
    T(readv(wo, v, 1));
    T(read(dir, buf, 1));
    T(pread(dir, buf, 1, 0));
    T(readv(dir, v, 1));
    T(read(path, buf, 1));
    T(preadv(path, v, 1, 0));
    T(read(99, buf, 1));
    T(pread(99, buf, 1, -1));
}

static void writes(void)
{
    printf("# write\n");
    struct iovec v[3] = {{"one", 3}, {"four", 4}, {"fivee", 5}};
    struct iovec bad[3] = {{"one", 3}, {hole, 4}, {"fivee", 5}};
    memcpy(edge + 4096 - 4, "edge", 4);
    T(ftruncate(fd, 0));
    T(lseek(fd, 5, SEEK_SET));
    T(write(fd, "xyz", 3)); state(); content(0, 20);
    T(write(fd, "", 0)); state();
    T(write(fd, hole, 0));
    T(write(fd, hole, 5)); state();
    T(write(fd, edge + 4096 - 4, 10)); state(); content(0, 20);
    T(pwrite(fd, "PP", 2, 1)); state(); content(0, 20);
    T(pwrite(fd, "PP", 2, -1));
    T(pwrite(fd, "PP", (size_t)-1, 1));
    T(pwrite(fd, hole, 2, 1));
    T(pwrite(fd, "PP", 2, INT64_MAX));
    T(writev(fd, v, 3)); state(); content(0, 30);
    T(writev(fd, v, 0));
    T(writev(fd, bad, 3)); state();
    T(writev(fd, bad + 1, 2)); state();
    T(pwritev(fd, v, 3, 2)); content(0, 30);
    T(pwritev(fd, v, 3, -2));
    T(pwritev2(fd, v, 3, -1, 0)); state();
    T(pwritev2(fd, v, 1, 0, RWF_APPEND)); state(); content(0, 40);
    T(pwritev2(fd, v, 1, 0, RWF_SYNC)); state();
    T(pwritev2(fd, v, 1, 0, 0x40000000));
    T(write(ro, "x", 1));
    T(pwrite(ro, "x", 1, 0));
    T(writev(ro, v, 1));
    T(write(dir, "x", 1));
    T(write(path, "x", 1));
    T(write(99, "x", 1));
}

static void append(void)
{
    printf("# append\n");
    T(ftruncate(fd, 3));
    T(fcntl(fd, F_SETFL, O_APPEND));
    printf("  %o\n", fcntl(fd, F_GETFL));
    T(lseek(fd, 1, SEEK_SET));
    T(write(fd, "end", 3)); state(); content(0, 20);
    T(lseek(fd, 1, SEEK_SET));
    T(pwrite(fd, "PW", 2, 0)); state(); content(0, 20);
    struct iovec v = {"vv", 2};
    T(pwritev(fd, &v, 1, 0)); state(); content(0, 20);
    T(fcntl(fd, F_SETFL, 0));
    T(pwrite(fd, "PW", 2, 0)); state(); content(0, 20);
    T(fcntl(path, F_SETFL, O_APPEND));
    printf("  %o %o %o %o\n", fcntl(ro, F_GETFL), fcntl(wo, F_GETFL), fcntl(dir, F_GETFL), fcntl(path, F_GETFL));
}

static void seeks(void)
{
    printf("# seek\n");
    T(ftruncate(fd, 100));
    T(lseek(fd, 10, SEEK_SET));
    T(lseek(fd, 5, SEEK_CUR));
    T(lseek(fd, -20, SEEK_CUR));
    T(lseek(fd, -20, SEEK_END));
    T(lseek(fd, -101, SEEK_END));
    T(lseek(fd, -1, SEEK_SET));
    T(lseek(fd, INT64_MAX, SEEK_CUR));
    T(lseek(fd, 1000, SEEK_SET)); state();
    T(read(fd, buf, 5));
    T(lseek(fd, 0, 99));
    T(lseek(fd, 100, SEEK_DATA));
    T(lseek(fd, 100, SEEK_HOLE));
    T(lseek(fd, 99, SEEK_HOLE));
    T(lseek(fd, -1, SEEK_DATA));
    T(lseek(path, 0, SEEK_CUR));
    T(lseek(99, 0, SEEK_CUR));
    T(lseek(fd, 5LL << 30, SEEK_SET));
    T(write(fd, "far", 3)); state();
    content((5LL << 30) - 2, 10);
    content(4LL << 30, 10);
    T(lseek(fd, 1 << 20, SEEK_DATA) > 1 << 20);
    T(lseek(fd, 1 << 20, SEEK_HOLE));
    T(dup(fd) > 0);
    T(lseek(fd, 7, SEEK_SET));
    int other = dup(fd);
    T(lseek(other, 0, SEEK_CUR));
    T(lseek(other, 1, SEEK_CUR));
    T(lseek(fd, 0, SEEK_CUR));
    close(other);
}

static void sizes(void)
{
    printf("# size\n");
    T(ftruncate(fd, 10)); state();
    T(ftruncate(fd, -1));
    T(ftruncate(ro, 10));
    T(ftruncate(dir, 10));
    T(ftruncate(path, 10));
    T(ftruncate(99, 10));
    T(ftruncate(fd, 6LL << 30)); state();
    T(ftruncate(fd, 0)); state();
    T(fallocate(fd, 0, 0, 10000)); state();
    T(fallocate(fd, 0, 5000, 10000)); state();
    T(fallocate(fd, FALLOC_FL_KEEP_SIZE, 20000, 10000)); state();
    T(fallocate(fd, 0, -1, 10));
    T(fallocate(fd, 0, 0, 0));
    T(fallocate(fd, 0, INT64_MAX, 10));
    T(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 10));
    T(fallocate(fd, 0x4000, 0, 10));
    T(pwrite(fd, "0123456789", 10, 4000));
    T(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4002, 4)); content(3998, 14); state();
    T(fallocate(ro, 0, 0, 10));
    T(fallocate(dir, 0, 0, 10));
    T(fallocate(path, 0, 0, 10));
    T(posix_fallocate(fd, 0, 30000)); state();
    T(fsync(fd));
    T(fdatasync(ro));
    T(fsync(dir));
    T(fsync(path));
    T(syncfs(fd));
    T(syncfs(path));
    T(sync_file_range(fd, 0, 100, SYNC_FILE_RANGE_WRITE));
    T(sync_file_range(fd, -1, 100, SYNC_FILE_RANGE_WRITE));
    T(sync_file_range(fd, 0, 100, 77));
    T(posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL));
    T(posix_fadvise(fd, 0, 0, 77));
    T(posix_fadvise(path, 0, 0, 0));
    T(readahead(fd, 0, 100));
    T(readahead(wo, 0, 100));
    T(readahead(dir, 0, 100));
    T(readahead(path, 0, 100));
}

static volatile sig_atomic_t got;
static void on_signal(int n) { got = n; }

static void limits(void)
{
    printf("# limits\n");
    struct rlimit saved, small = {1000, 0};
    getrlimit(RLIMIT_FSIZE, &saved);
    small.rlim_max = saved.rlim_max;
    signal(SIGXFSZ, on_signal);
    setrlimit(RLIMIT_FSIZE, &small);
    T(ftruncate(fd, 0));
    T(pwrite(fd, buf, 50, 990)); state();
    T(pwrite(fd, buf, 50, 1000)); printf("  signal %d\n", got); got = 0;
    T(ftruncate(fd, 1001)); printf("  signal %d\n", got); got = 0;
    T(ftruncate(fd, 1000)); state();
    T(fallocate(fd, 0, 0, 1001)); printf("  signal %d\n", got); got = 0;
    T(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 1001));
    signal(SIGXFSZ, SIG_IGN);
    T(pwrite(fd, buf, 50, 1000)); printf("  signal %d\n", got);
    setrlimit(RLIMIT_FSIZE, &saved);
}

static void ioctls(void)
{
    printf("# ioctl\n");
    int n = -1;
    long long big = -1;
    T(ftruncate(fd, 100));
    T(lseek(fd, 30, SEEK_SET));
    T(ioctl(fd, FIONREAD, &n)); printf("  %d\n", n);
    T(ioctl(fd, FIONREAD, hole));
    T(ioctl(fd, 0x5460 /* FIOQSIZE */, &big)); printf("  %lld\n", big);
    T(ioctl(fd, TCGETS, buf));
    T(ioctl(fd, TIOCGWINSZ, buf));
    T(ioctl(fd, 0x12345678, buf));
    n = 1;
    T(ioctl(fd, FIONBIO, &n)); printf("  %d\n", fcntl(fd, F_GETFL) & O_NONBLOCK);
    n = 0;
    T(ioctl(fd, FIONBIO, &n)); printf("  %d\n", fcntl(fd, F_GETFL) & O_NONBLOCK);
    T(ioctl(fd, FIOCLEX, 0)); printf("  %d\n", fcntl(fd, F_GETFD));
    T(ioctl(fd, FIONCLEX, 0)); printf("  %d\n", fcntl(fd, F_GETFD));
    T(ioctl(path, FIONREAD, &n));
    T(ioctl(fd, 0x40049409 /* FICLONE */, 99));
    T(isatty(fd));
}

static void owners(void)
{
    printf("# set-id\n");
    struct stat st;
    if (geteuid() == 0) {
        fchown(fd, 1000, 1000);
        fchmod(fd, 0);
    }
    T(ftruncate(fd, 100));
    T(fchmod(fd, 06777));
    if (geteuid() == 0) {
        syscall(SYS_setgroups, 0, NULL);
        T(setresgid(1000, 1000, 1000));
        T(setresuid(1000, 1000, 0));
    }
    fstat(fd, &st); printf("  %o\n", st.st_mode);
    T(pwrite(fd, "", 0, 0));
    fstat(fd, &st); printf("  %o\n", st.st_mode);
    T(pwrite(fd, "x", 1, 0));
    fstat(fd, &st); printf("  %o\n", st.st_mode);
    T(fchmod(fd, 06777));
    T(ftruncate(fd, 10));
    fstat(fd, &st); printf("  %o\n", st.st_mode);
    T(fchmod(fd, 02666));
    T(pwrite(fd, "x", 1, 0));
    fstat(fd, &st); printf("  %o\n", st.st_mode);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOFBF, 1 << 20);
    edge = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(edge + 4096, 4096);
    hole = edge + 4096;
    umask(0);
    fd = open("file", O_RDWR | O_CREAT | O_EXCL, 0644);
    ro = open("file", O_RDONLY);
    wo = open("file", O_WRONLY);
    dir = open(".", O_RDONLY | O_DIRECTORY);
    path = open("file", O_PATH);
    reads();
    writes();
    append();
    seeks();
    sizes();
    limits();
    ioctls();
    owners();
    return 0;
}
