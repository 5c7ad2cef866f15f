/* Root changes owners and modes as fast as it can, in several processes, and each change is seen at once. What is wrong is
   printed. Argument: a directory. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int wrong;

static void expect(const char *what, const char *name, int uid, int gid, int mode)
{
    struct stat st;
    struct statx x;
    if (lstat(name, &st) || (int)st.st_uid != uid || (int)st.st_gid != gid || (mode >= 0 && (int)(st.st_mode & 07777) != mode)) {
        printf("%s %s: %d:%d %o instead of %d:%d %o\n", what, name, st.st_uid, st.st_gid, st.st_mode, uid, gid, mode);
        wrong++;
    }
    if (statx(AT_FDCWD, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &x) || (int)x.stx_uid != uid || x.stx_mode != st.st_mode)
        wrong++, printf("statx %s: %d %o\n", name, x.stx_uid, x.stx_mode);
}

static void make(const char *name)
{
    int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
    if (fd < 0)
        wrong++, printf("open %s: %s\n", name, strerror(errno));
    close(fd);
}

static void change(int number, int rounds)
{
    static const int modes[] = {0644, 0600, 0, 0400, 04755, 06755, 01777, 0644, 0644};
    char name[32], other[32];
    srandom(number + 1);
    for (int i = 0; i < rounds; i++) {
        int uid = random() % 1000, gid = random() % 1000, mode = modes[random() % 9], how = random() % 6;
        snprintf(name, sizeof name, "f%d.%ld", number, random() % 4);
        if (access(name, F_OK)) {
            make(name);
            expect("new", name, 0, 0, 0644);
        }
        int fd = open(name, O_RDONLY);
        switch (how) {
        case 0: chown(name, uid, gid); break;
        case 1: lchown(name, uid, gid); break;
        case 2: fchown(fd, uid, gid); break;
        case 3: fchownat(fd, "", uid, gid, AT_EMPTY_PATH); break;
        default: fchownat(AT_FDCWD, name, uid, gid, 0);
        }
        expect("chown", name, uid, gid, -1);
        how & 1 ? chmod(name, mode) : fchmod(fd, mode);
        expect("chmod", name, uid, gid, mode);
        close(fd);
        switch (random() % 8) {
        case 0: unlink(name); break;
        case 1:
            snprintf(other, sizeof other, "f%d.%ld", number, random() % 4);
            if (rename(name, other) == 0)
                expect("rename", other, uid, gid, mode);
        }
    }
    fflush(stdout);
}

/* More changes than anybody can note down, without a look. */
static void many(int count)
{
    char name[32];
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "many/%d", i);
        if (i % 3 == 0 ? mkdir(name, 0755) : (make(name), 0))
            wrong++;
    }
    for (int turn = 1; turn < 4; turn++)
        for (int i = 0; i < count; i++) {
            snprintf(name, sizeof name, "many/%d", i);
            if (chown(name, i, turn))
                wrong++;
        }
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "many/%d", i);
        expect("many", name, i, 3, -1);
    }
}

/* Those that are killed in the middle of it are in nobody's way. */
static void killed(void)
{
    struct stat st;
    make("shared");
    for (int i = 0; i < 12; i++) {
        int pid = fork();
        if (pid == 0)
            for (int k = 0;; k ^= 1)
                chown("shared", 10 + k, 20 + k);
        usleep(3000 + 1000 * (i % 5));
        kill(pid, SIGKILL);
        waitpid(pid, 0, 0);
        stat("shared", &st);
        if (st.st_gid != st.st_uid + (st.st_uid ? 10 : 0))
            wrong++, printf("shared: %d:%d\n", st.st_uid, st.st_gid);
    }
    chown("shared", 5, 6);
    expect("shared", "shared", 5, 6, 0644);
}

/* A child with the same memory becomes somebody; its parent stays root. */
static void vforked(void)
{
    for (int i = 0; i < 3; i++) {
        volatile int inside = -1;
        getuid();
        int pid = vfork();
        if (pid == 0) {
            if (setresuid(33 + i, 33 + i, 33 + i))
                _exit(9);
            inside = getuid();
            _exit(geteuid() == 33u + i ? 0 : 1);
        }
        int status;
        waitpid(pid, &status, 0);
        if (status || inside != 33 + i || getuid() != 0 || geteuid() != 0)
            wrong++, printf("vfork: status %x, %d inside, %d outside\n", status, inside, getuid());
        if (chown("shared", 7 + i, 8))
            wrong++;
        expect("after vfork", "shared", 7 + i, 8, 0644);
    }
}

int main(int argc, char **argv)
{
    int rounds = argc > 2 ? atoi(argv[2]) : 400, status;
    if (chdir(argv[1]) || mkdir("many", 0755))
        return 2;
    umask(022);
    for (int i = 0; i < 4; i++)
        if (fork() == 0) {
            change(i, rounds);
            _exit(wrong != 0);
        }
    while (wait(&status) > 0)
        wrong += status != 0;
    many(1700);
    killed();
    vforked();
    if (!wrong)
        puts("ok");
    return wrong != 0;
}
