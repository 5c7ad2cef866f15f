/* Random walks of core_accel/pathwalk.h: pathwalk_fuzz SEED ROUNDS. Prints how many arrived and how
   many failed; aborts where a result isn't canonical. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "pathwalk.h"

static unsigned pick(unsigned n) { return (unsigned)random() % n; }

/* Random path text of at most `max` bytes, mostly short; sometimes canonical. */
static uint32_t text(char *out, uint32_t max, int canonical)
{
    static const char *const parts[] = {"a", "b", "..", ".", "/", "/", "/", "//", "mm", "...",
                                        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"};
    uint32_t n = 0;
    for (unsigned left = pick(4) ? pick(8) : pick(3000); left; left--) {
        const char *part = canonical ? (pick(2) ? "/a" : "/mm") : parts[pick(11)];
        uint32_t len = strlen(part);
        if (n + len > max)
            break;
        memcpy(out + n, part, len);
        n += len;
    }
    return n;
}

static long look(struct umvm_walk *w, uint32_t mount)
{
    (void)mount;
    if (w->len > UMVM_PLACE_MAX + 1 || w->path[w->len])
        abort();
    switch (pick(8)) {
    case 0:
        return -ENOENT;
    case 1:
        return UMVM_IS_OTHER;
    case 2:
        return text(w->link, UMVM_PATH_MAX - 1, 0);
    case 3:
        w->jump_mount = pick(2) ? UMVM_BY_PATH : pick(9);
        return text(w->link, UMVM_PATH_MAX - 1, 1) | UMVM_MAGIC;
    case 4:
        return UMVM_IS_SOME;
    default:
        return UMVM_IS_DIR;
    }
}

static struct umvm_view *view(void)
{
    static const char *const places[] = {"/", "/a", "/a/b", "/b", "/mm", "/a/a/", "/mm/b", "/proc"};
    const char *points[6], *root = pick(4) ? "/" : "/a";
    uint32_t lens[6], ids[6], count = pick(6);
    size_t bytes = strlen(root);
    for (uint32_t i = 0; i < count; i++) {
        points[i] = places[pick(8)];
        bytes += lens[i] = strlen(points[i]);
        ids[i] = pick(6);
    }
    void *memory = calloc(1, umvm_view_bytes(count, bytes));
    return umvm_view_make(memory, points, lens, ids, count, count - (count && pick(2)), root, strlen(root));
}

static int canonical(const struct umvm_walk *w)
{
    return w->path[0] == '/' && strlen(w->path) == w->len && !strstr(w->path, "//") && !strstr(w->path, "/../") &&
           !strstr(w->path, "/./") && (w->len == 1 || w->path[w->len - 1] != '/');
}

int main(int argc, char **argv)
{
    static const char *const bases[] = {"/", "/a", "/a/b/mm", "/b/a/", "/mm", "(unreachable)/a"};
    long found = 0, failed = 0;
    if (argc != 3)
        return 2;
    srandom(atoi(argv[1]));
    for (int round = atoi(argv[2]); round > 0; round--) {
        struct umvm_view *v = view();
        struct umvm_walk *w = malloc(sizeof *w);
        char buffer[4200];
        uint32_t len = text(buffer, sizeof buffer, 0);
        char *path = malloc(len + !len); /* of the exact size, so that reading on is seen */
        memcpy(path, buffer, len);
        memset(w, 0xAA, sizeof *w); /* nothing but what the caller sets may matter */
        w->look = look;
        w->ctx = 0;
        w->base_mount = pick(2) ? UMVM_BY_PATH : pick(7);
        const char *base = bases[pick(6)];
        if (umvm_walk(v, w, base, strlen(base), path, len, pick(512)) < 0) {
            failed++;
        } else {
            found++;
            if (!canonical(w)) {
                fprintf(stderr, "not canonical: %s\n", w->path);
                abort();
            }
        }
        free(path);
        free(w);
        free(v);
    }
    printf("%ld %ld\n", found, failed);
    return 0;
}
