/* Maps the patched copy of an executable segment over the original, if the cache has one. */
#ifndef UMVM_AGENT_TEXT_H
#define UMVM_AGENT_TEXT_H
#include "base.h"

static uint64_t nanoseconds(uint64_t seconds, uint64_t nsec) { return seconds * 1000000000ull + nsec; }

/* Files may be replaced by others of the same inode, size and time. */
static int same_content(int file, const struct stat *st, const volatile struct umvm_text *t)
{
    uint8_t id[sizeof t->id];
    if (!t->id_length)
        return t->ctime == nanoseconds(st->st_ctime, st->st_ctime_nsec);
    if (SYS4(__NR_pread64, file, id, t->id_length, t->id_offset) != (long)t->id_length)
        return 0;
    for (uint32_t i = 0; i < t->id_length; i++)
        if (id[i] != t->id[i])
            return 0;
    return 1;
}

/* The entry for a file, or 0: it isn't known yet. */
static const volatile struct umvm_text *find_text(int file, const struct stat *st, uint64_t offset)
{
    uint64_t h = hash_step(hash_step(st->st_dev, st->st_ino), offset >> 12);
    for (uint32_t i = 0; i < 2 * UMVM_TEXTS; i++) {
        uint16_t number = ROUTE->text_index[(h + i) % (2 * UMVM_TEXTS)];
        if (!number)
            return 0;
        const volatile struct umvm_text *t = &ROUTE->texts[number - 1];
        if (t->ino == st->st_ino && t->dev == st->st_dev && t->offset == offset && t->size == (uint64_t)st->st_size &&
            t->mtime == nanoseconds(st->st_mtime, st->st_mtime_nsec))
            return same_content(file, st, t) ? t : 0;
    }
    return 0;
}

/* The copy must be what the supervisor made and nobody else can write. A descriptor, or −1. */
static int open_copy(const volatile struct umvm_text *t)
{
    char path[560];
    struct stat st;
    uint32_t n = 0;
    while (n < sizeof ROUTE->cache && ROUTE->cache[n])
        path[n] = ROUTE->cache[n], n++;
    path[n++] = '/';
    for (uint32_t i = 0; i < sizeof t->name; i++)
        path[n + i] = t->name[i];
    int fd = (int)SYS4(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
    if (fd < 0)
        return -1;
    if (SYS2(__NR_fstat, fd, &st) == 0 && st.st_uid == ROUTE->owner && !(st.st_mode & 022) &&
        (uint64_t)st.st_size == t->copy_size)
        return fd;
    SYS1(__NR_close, fd);
    return -1;
}

/* A file is mapped executable at `address`, or is to be. 1: the copy is mapped there now; 0: the file isn't known;
   −1: the mapping is to stay as it is. */
static NOINLINE int patch_mapping(int file, const struct stat *st, uint64_t address, uint64_t length, uint64_t offset)
{
    if ((st->st_mode & S_IFMT) != S_IFREG || SELF->unlinked)
        return -1;
    const volatile struct umvm_text *t = find_text(file, st, offset);
    if (t && t->stub_length == 0)
        return -1;
    uint32_t before_shared = SELF->shared;
    SELF->shared = 1; /* until it is patched: calls of vfork aren't seen */
    if (!t)
        return 0;
    if (((length + 4095) & ~4095ull) < t->length)
        return -1;
    uint64_t *base = &SELF->bases[(t->stub - UMVM_STUBS) / 4096];
    uint64_t bias = address - t->vaddr;
    if (*base && *base != bias + 1)
        return -1; /* mapped twice: the stubs know one place only */
    int fd = open_copy(t);
    if (fd < 0)
        return -1;
    uint64_t before = *base;
    *base = bias + 1;
    long r = SYS6(__NR_mmap, address, t->length, 5, 0x12 /* MAP_PRIVATE | MAP_FIXED */, fd, 0);
    SYS1(__NR_close, fd);
    if (r > 0 || r < -4095) {
        SELF->shared = before_shared;
        return 1;
    }
    *base = before;
    return -1;
}
#endif
