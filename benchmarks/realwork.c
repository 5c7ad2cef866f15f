/* What shells and servers do most: start programs and threads. realwork start N PROGRAM | threads N */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void *nothing(void *p) { return p; }

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    int count = atoi(argv[2]);
    for (int i = 0; i < count && !strcmp(argv[1], "threads"); i++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, nothing, 0) || pthread_join(thread, 0))
            fail("pthread_create");
    }
    for (int i = 0; i < count && !strcmp(argv[1], "start"); i++) {
        int status;
        pid_t pid = fork();
        if (pid < 0)
            fail("fork");
        if (pid == 0) {
            execl(argv[3], argv[3], (char *)0);
            _exit(127);
        }
        if (waitpid(pid, &status, 0) != pid || status)
            fail(argv[3]);
    }
    return 0;
}
