/* sendfile, splice, tee and copy_file_range with every kind of descriptor: prints what came out. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static int a, b, ro, wo, ap, dir, path, p[2];
static char *hole;

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
    char text[64] = "";
    struct stat st;
    fstat(b, &st);
    int n = pread(b, text, 40, 0);
    printf("  a at %ld, b at %ld of %ld: %.*s\n", (long)lseek(a, 0, SEEK_CUR), (long)lseek(b, 0, SEEK_CUR), (long)st.st_size, n, text);
}

static void reset(void)
{
    lseek(a, 0, SEEK_SET);
    lseek(b, 0, SEEK_SET);
    if (ftruncate(b, 0))
        printf("ftruncate\n");
}

static void drain(void)
{
    char text[64];
    fcntl(p[0], F_SETFL, O_NONBLOCK);
    int n = read(p[0], text, sizeof text);
    fcntl(p[0], F_SETFL, 0);
    printf("  pipe: %.*s\n", n < 0 ? 0 : n, text);
}

int main(void)
{
    off_t off, off2;
    setvbuf(stdout, NULL, _IOFBF, 1 << 20);
    hole = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(hole, 4096);
    a = open("a", O_RDWR | O_CREAT, 0644);
    b = open("b", O_RDWR | O_CREAT, 0644);
    ro = open("b", O_RDONLY);
    wo = open("b", O_WRONLY);
    ap = open("b", O_RDWR | O_APPEND);
    dir = open(".", O_RDONLY);
    path = open("a", O_PATH);
    if (write(a, "abcdefghijklmnopqrstuvwxyz", 26) != 26 || pipe(p))
        return 1;

    printf("# sendfile\n");
    reset(); T(sendfile(b, a, NULL, 10)); state();
    T(sendfile(b, a, NULL, 100)); state();
    T(sendfile(b, a, NULL, 100));
    off = 5; reset(); T(sendfile(b, a, &off, 3)); printf("  %ld\n", (long)off); state();
    off = 100; T(sendfile(b, a, &off, 3)); printf("  %ld\n", (long)off);
    off = -1; T(sendfile(b, a, &off, 3));
    T(sendfile(b, a, (off_t *)hole, 3));
    T(sendfile(b, a, NULL, 0));
    off = 0; T(sendfile(ro, a, &off, 3));
    T(sendfile(b, wo, &off, 3));
    T(sendfile(ap, a, &off, 3));
    T(sendfile(dir, a, &off, 3));
    T(sendfile(b, dir, &off, 3));
    T(sendfile(b, path, &off, 3));
    T(sendfile(path, a, &off, 3));
    T(sendfile(99, a, &off, 3));
    T(sendfile(b, 99, &off, 3));
    T(sendfile(b, p[0], NULL, 3));
    T(sendfile(b, p[0], &off, 3));
    T(sendfile(p[0], a, &off, 3));
    reset(); T(sendfile(p[1], a, NULL, 7)); state(); drain();

    printf("# splice\n");
    reset(); T(splice(a, NULL, p[1], NULL, 5, 0)); state(); drain();
    off = 20; T(splice(a, &off, p[1], NULL, 100, 0)); printf("  %ld\n", (long)off); state();
    off2 = 3; T(splice(p[0], NULL, b, &off2, 4, 0)); printf("  %ld\n", (long)off2); state();
    T(splice(p[0], NULL, b, NULL, 100, 0)); state();
    T(splice(p[0], NULL, b, NULL, 100, SPLICE_F_NONBLOCK));
    T(splice(a, NULL, b, NULL, 5, 0));
    T(splice(a, NULL, p[1], NULL, 0, 0));
    T(splice(a, NULL, p[1], NULL, 5, 0x1000));
    off = 0; T(splice(a, &off, p[1], &off, 5, 0));
    T(splice(p[0], &off, b, NULL, 5, SPLICE_F_NONBLOCK));
    T(splice(wo, &off, p[1], NULL, 5, 0));
    T(splice(p[0], NULL, ro, NULL, 5, SPLICE_F_NONBLOCK));
    if (write(p[1], "pipe", 4) != 4)
        return 1;
    T(splice(p[0], NULL, ap, NULL, 5, SPLICE_F_NONBLOCK));
    T(splice(p[1], NULL, b, NULL, 5, SPLICE_F_NONBLOCK));
    T(splice(a, &off, p[0], NULL, 5, 0));
    T(splice(path, &off, p[1], NULL, 5, 0));
    T(splice(dir, &off, p[1], NULL, 5, 0));
    T(splice(99, NULL, p[1], NULL, 5, 0));
    T(splice(a, NULL, 99, NULL, 5, 0));
    drain();
    off = 1000; T(splice(a, &off, p[1], NULL, 5, 0));
    T(tee(a, p[1], 5, 0));
    T(tee(p[0], b, 5, 0));
    T(tee(path, p[1], 5, 0));
    struct iovec v = {"x", 1};
    T(vmsplice(b, &v, 1, 0));
    close(p[1]);
    T(splice(p[0], NULL, b, NULL, 100, 0));
    if (pipe(p))
        return 1;

    printf("# copy_file_range\n");
    reset(); T(copy_file_range(a, NULL, b, NULL, 5, 0)); state();
    off = 10, off2 = 2; T(copy_file_range(a, &off, b, &off2, 6, 0)); printf("  %ld %ld\n", (long)off, (long)off2); state();
    T(copy_file_range(a, NULL, b, NULL, 1000, 0)); state();
    T(copy_file_range(a, NULL, b, NULL, 1000, 0)); state();
    T(copy_file_range(a, NULL, b, NULL, 0, 0));
    T(copy_file_range(a, NULL, b, NULL, 5, 1));
    off = 0, off2 = 5; T(copy_file_range(a, &off, a, &off2, 5, 0)); printf("  %ld %ld\n", (long)off, (long)off2);
    off = 0, off2 = 2; T(copy_file_range(a, &off, a, &off2, 5, 0));
    off = 3, off2 = 0; T(copy_file_range(a, &off, a, &off2, 5, 0));
    off = -1; T(copy_file_range(a, &off, b, NULL, 5, 0));
    off = INT64_MAX - 2; T(copy_file_range(a, &off, b, NULL, 5, 0));
    off = 100; T(copy_file_range(a, &off, b, NULL, 5, 0));
    T(copy_file_range(a, (off_t *)hole, b, NULL, 5, 0));
    off = 0; T(copy_file_range(wo, &off, a, NULL, 5, 0));
    T(copy_file_range(a, &off, ro, NULL, 5, 0));
    T(copy_file_range(a, &off, ap, NULL, 5, 0));
    T(copy_file_range(a, &off, dir, NULL, 5, 0));
    T(copy_file_range(dir, &off, b, NULL, 5, 0));
    T(copy_file_range(path, &off, b, NULL, 5, 0));
    T(copy_file_range(a, &off, 99, NULL, 5, 0));
    T(copy_file_range(99, &off, b, NULL, 5, 0));
    T(copy_file_range(a, &off, p[1], NULL, 5, 0));
    T(copy_file_range(p[0], NULL, b, NULL, 5, 0));
    state();
    return 0;
}
