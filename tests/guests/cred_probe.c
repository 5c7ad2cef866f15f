/* Makes calls on credentials, one sequence after the other, and shows what came of each.

   Standard input has a sequence a line: words CALL:NUMBER,… with numbers as strtol(3) takes them.
   `setgroups:4,5` takes the groups themselves, `capset:E,P,I` whole sets, `exec:NAME` executes
   argv[1]/NAME and goes on there; `fork:` and `thread:` go on in a child or a thread, and afterwards
   what the others have is shown again. Each sequence runs in a process of its own.
   System calls are made directly: the C library would make them in every thread. */
#include "creds.h"
#include <elf.h>
#include <sys/auxv.h>

static const int watched[] = {0, 1, 5, 6, 7, 8, 9, 27, 33};
static const char *directory;

static void show(void)
{
    struct caps_header header = {0x20080522, 0};
    struct caps_data d[2];
    unsigned bounding = 0, ambient = 0;
    memset(d, 0, sizeof d);
    show_ids("u", "g", "", "G");
    syscall(SYS_capget, &header, d);
    for (unsigned i = 0; i < sizeof watched / sizeof *watched; i++) {
        bounding |= (unsigned)(prctl(PR_CAPBSET_READ, watched[i], 0, 0, 0) > 0) << i;
        ambient |= (unsigned)(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, watched[i], 0, 0) > 0) << i;
    }
    printf(" c %x%08x %x%08x %x%08x b %x a %x s %x k %d n %d d %d\n", d[1].effective, d[0].effective, d[1].permitted,
           d[0].permitted, d[1].inheritable, d[0].inheritable, bounding, ambient, prctl(PR_GET_SECUREBITS, 0, 0, 0, 0),
           prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
}

static void show_status(void)
{
    static const char *const wanted[] = {"Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:"};
    char line[4096];
    FILE *file = fopen("/proc/thread-self/status", "r");
    while (file && fgets(line, sizeof line, file))
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
            if (!strncmp(line, wanted[i], strlen(wanted[i])))
                printf("%s", line);
    if (file)
        fclose(file);
    else
        printf("no status: %s\n", strerror(errno));
}

static void show_auxv(void)
{
    printf(" aux %lu %lu %lu %lu %lu", getauxval(AT_UID), getauxval(AT_EUID), getauxval(AT_GID), getauxval(AT_EGID),
           getauxval(AT_SECURE));
}

static long capset(const long *a)
{
    struct caps_header header = {0x20080522, 0};
    struct caps_data d[2];
    for (int i = 0; i < 2; i++) {
        d[i].effective = (uint64_t)a[0] >> 32 * i;
        d[i].permitted = (uint64_t)a[1] >> 32 * i;
        d[i].inheritable = (uint64_t)a[2] >> 32 * i;
    }
    return syscall(SYS_capset, &header, d);
}

static long execute(const char *name, int count, char **steps)
{
    char path[4096], *argv[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    argv[0] = (char *)name;
    argv[1] = "-";
    argv[2] = (char *)directory;
    for (int i = 0; i < count; i++)
        argv[3 + i] = steps[i];
    argv[3 + count] = 0;
    fflush(stdout);
    return execv(path, argv);
}

static void run(int count, char **steps)
{
    for (int i = 0; i < count; i++) {
        char *colon = strchr(steps[i], ':'), *at = colon + 1;
        size_t length = (size_t)(colon - steps[i]);
        long a[64] = {0}, result = -1;
        int n = 0, ends = 0;
        struct rest rest = {count - i - 1, steps + i + 1};
        while (*at && n < 64 && strncmp(steps[i], "exec:", 5)) {
            a[n++] = strtol(at, &at, 0);
            at += *at == ',';
        }
        errno = 0;
        if (!strncmp(steps[i], "fork:", 5)) {
            fflush(stdout);
            if (fork() == 0) {
                run(rest.count, rest.steps);
                fflush(stdout);
                _exit(0);
            }
            wait(0);
            result = 0, ends = 1;
        } else if (!strncmp(steps[i], "thread:", 7)) {
            run_in_thread(&rest);
            result = 0, ends = 1;
        } else if (!strncmp(steps[i], "exec:", 5))
            result = execute(colon + 1, rest.count, rest.steps);
        else if (!strncmp(steps[i], "status:", 7)) {
            show_status();
            continue;
        } else if (!strncmp(steps[i], "setgroups:", 10))
            result = set_groups(n, a);
        else if (!strncmp(steps[i], "capset:", 7))
            result = capset(a);
        else
            result = call_named(steps[i], length, a);
        int error = errno;
        printf("%s = %ld %d", steps[i], result, result < 0 ? error : 0);
        show();
        if (ends)
            return;
    }
}

int main(int argc, char **argv)
{
    static char lines[1 << 22];
    if (argc > 2 && !strcmp(argv[1], "-")) {
        directory = argv[2];
        show_auxv();
        show();
        run(argc - 3, argv + 3);
        return 0;
    }
    directory = argv[1];
    lines[fread(lines, 1, sizeof lines - 1, stdin)] = 0;
    int number = 0;
    for (char *line = strtok(lines, "\n"), *next; line; line = next) {
        char *steps[64], *word;
        int count = 0;
        next = strtok(0, "\n");
        while ((word = strsep(&line, " ")) && count < 64)
            steps[count++] = word;
        printf("# %d\n", number++);
        fflush(stdout);
        if (fork() == 0) {
            run(count, steps);
            fflush(stdout);
            _exit(0);
        }
        wait(0);
    }
    return 0;
}
