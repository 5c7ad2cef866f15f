/* Makes the calls on credentials that its arguments name, and shows what came of each.

   An argument is CALL:NUMBER,…, as setresuid:33,-1,0. `setgroups:4,5` takes the groups themselves;
   `capset:E,P,I` sets of capabilities in octal, `keep:1` is
   PR_SET_KEEPCAPS, `fork:`, `thread:` and `exec:` go on in a child, a thread,
   or after execve.
   System calls are made directly: the C library would make them in every thread. */
#include "creds.h"

/* The capabilities shown: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, SETPCAP. A container
   may lack others. */
static const uint32_t shown = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8;

static void show(void)
{
    struct caps_header header = {0x20080522, 0};
    struct caps_data data[2];
    show_ids("uid", "gid", "fs ", "groups");
    syscall(SYS_capget, &header, data);
    printf(" caps %x %x %x\n", data[0].effective & shown, data[0].permitted & shown, data[0].inheritable & shown);
    fflush(stdout);
}

static long capset(const long *a)
{
    struct caps_header header = {0x20080522, 0};
    struct caps_data data[2];
    memset(data, 0, sizeof data);
    data[0].effective = a[0], data[0].permitted = a[1], data[0].inheritable = a[2];
    return syscall(SYS_capset, &header, data);
}

static void run(int count, char **steps)
{
    for (int i = 0; i < count; i++) {
        char *colon = strchr(steps[i], ':'), *at = colon + 1;
        size_t length = colon - steps[i];
        long a[64] = {0}, result = -1;
        int n = 0, base = strncmp(steps[i], "capset", length) ? 10 : 8;
        while (*at && n < 64) {
            a[n++] = strtol(at, &at, base);
            at += *at == ',';
        }
        struct rest rest = {count - i - 1, steps + i + 1};
        if (!strncmp(steps[i], "fork:", 5)) {
            fflush(stdout);
            if (fork() == 0) {
                run(rest.count, rest.steps);
                _exit(0);
            }
            wait(0);
            return;
        }
        if (!strncmp(steps[i], "thread:", 7)) {
            run_in_thread(&rest);
            return;
        }
        if (!strncmp(steps[i], "exec:", 5)) {
            execv("/proc/self/exe", steps + i);
            return;
        }
        errno = 0;
        if (!strncmp(steps[i], "setgroups", length))
            result = set_groups(n, a);
        else if (!strncmp(steps[i], "capset", length))
            result = capset(a);
        else if (!strncmp(steps[i], "keep", length))
            result = prctl(PR_SET_KEEPCAPS, a[0], 0, 0, 0);
        else
            result = call_named(steps[i], length, a);
        printf("%s = %ld errno %d:", steps[i], result, errno);
        show();
    }
}

int main(int argc, char **argv)
{
    printf("start:");
    show();
    run(argc - 1, argv + 1);
    return 0;
}
