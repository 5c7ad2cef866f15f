/* What guests and supervisor share: fixed addresses, and the area: one file that every guest maps.

   Every guest has the loader's pages and the area at the same addresses, below 2 GiB so that
   `jmp *abs32` reaches them; the filter lets calls from UMVM_AGENT_BASE to UMVM_GATE pass. An offset in
   the area's file is an address − UMVM_AGENT_BASE; it is mapped from the loader's end on, so that
   nothing of the guest's can come to lie there. Guests can't write but the state. */
#ifndef UMVM_AGENT_LAYOUT_H
#define UMVM_AGENT_LAYOUT_H
#include "../ownernotes.h"
#include <stdint.h>

#define UMVM_AGENT_BASE 0x70000000u
#define UMVM_AGENT_MASK 0xff000000u /* calls from AGENT_BASE & MASK run, those from the gates ask */
#define UMVM_SELF 0x70001000u       /* struct umvm_self and more, private to the process; then the loader's text */
#define UMVM_TEXT 0x70080000u       /* the loader's own text */
#define UMVM_ROUTE 0x70100000u      /* struct umvm_route_area */
#define UMVM_STATE 0x70200000u      /* struct umvm_state */
#define UMVM_PLACES 0x70580000u     /* struct umvm_places */
#define UMVM_OWNED 0x70600000u      /* struct umvm_shown[UMVM_SHOWN_SLOTS] */
#define UMVM_OWNED_SIZE (UMVM_STUBS - UMVM_OWNED)
#define UMVM_STUBS 0x70800000u      /* stubs of patched files, up to the gate */
#define UMVM_GATE 0x71000000u       /* gates: each is a `syscall` that asks the supervisor */
#define UMVM_GATES 4096u
#define UMVM_GATE_SIZE 8u
#define UMVM_STUB_PAGES ((UMVM_GATE - UMVM_STUBS) / 4096)

#define UMVM_MAX_NR 512
#define UMVM_ENV_STAMP 0x756d766d61676535ull /* changes with the layout */

#define UMVM_NATIVELY 0x756d766d6e617469ull /* fourth argument of execve: not by the loader, and the path is the host's */

/* How the agent treats a call. */
enum umvm_flow {
    UMVM_F_RUN,     /* the kernel runs it */
    UMVM_F_GATE,    /* always the supervisor's */
    UMVM_F_ACTIVE,  /* the supervisor's while anything is served */
    UMVM_F_FD,      /* … if the descriptor is served */
    UMVM_F_FDS,     /* … while any descriptor is served */
    UMVM_F_PATH,    /* one or two paths whose last component isn't followed */
    UMVM_F_FOLLOW,  /* a path that is followed, unless `nofollow` bits are set in argument `flags` */
    UMVM_F_STAT,    /* stat, newfstatat, statx */
    UMVM_F_OPEN,
    UMVM_F_ACCESS,
    UMVM_F_READLINK,
    UMVM_F_MOVE,    /* rename, link, symlink: afterwards a path may lead elsewhere */
    UMVM_F_CHDIR,
    UMVM_F_FCHDIR,
    UMVM_F_GETCWD,
    UMVM_F_EXEC,
    UMVM_F_MMAP,
    UMVM_F_CLONE,
    UMVM_F_ADDRESS, /* connect, bind: by address family */
    UMVM_F_SENDTO,
    UMVM_F_SENDMSG,
    UMVM_F_PTRACE,
    UMVM_F_HOOKED,  /* the kernel's unless a module hooks it */
    UMVM_F_PRCTL,
    UMVM_F_SOCKNAME,
    UMVM_F_SECCOMP,
    UMVM_F_SIGRETURN,
    UMVM_F_SETID, /* always the supervisor's; rights may change */
};

struct umvm_kind {
    uint8_t flow;
    int8_t fd;
    int8_t path[2], dir[2];
    int8_t flags;     /* index of the argument with AT_ or O_ flags, or −1 */
    uint8_t nofollow; /* 1: AT_SYMLINK_NOFOLLOW in `flags` · 2: follows only with AT_SYMLINK_FOLLOW · 4: IN_DONT_FOLLOW */
};

struct umvm_text {
    uint64_t dev, ino, size, mtime, ctime; /* the file, times in ns; ctime counts without a build id */
    uint32_t id_offset, id_length;  /* where the file has its build id, and what it is */
    uint8_t id[24];
    uint64_t offset, length;        /* of its executable segment in the file, whole pages */
    uint64_t vaddr;                 /* of that offset; the stubs know addresses by it */
    uint32_t stub, stub_length;     /* where the stubs are mapped; length 0: there is nothing to patch */
    uint64_t copy_size;
    char name[40];                  /* of the copy in the cache directory: text, then stubs */
};

enum {
    UMVM_TEXTS = 4096,
    UMVM_VIEW_ROOM = 16384,
    UMVM_VIEWS = 24,
    UMVM_SPACES = 64, /* views of processes that agents know; in others they ask */
    UMVM_MAILBOXES = 64,
    UMVM_PREFIXES = 8192, /* 64 KiB: one fault maps them all */
    UMVM_TRANSLATIONS = 1024,
};

/* A guest's ids by the number that its soft limit RLIMIT_LOCKS holds (umvm/guest/marks.py). */
#define UMVM_RLIMIT_LOCKS 10
#define UMVM_MARKED (0x756d766dull << 32)
enum { UMVM_RECORDS = 1 << 16, UMVM_AGENT_IDS = 2048 };

struct umvm_ids {
    uint32_t valid;
    uint32_t ids[8]; /* real, effective, saved, file system: of the user, then of the group */
};

struct umvm_route_area {
    uint64_t stamp;
    uint64_t shadow_dev;
    uint32_t shadow_len, owner;
    char shadow[256];    /* how paths in the shadow directory begin, with a slash */
    char cache[512];     /* directory of patched copies */
    struct umvm_kind kinds[UMVM_MAX_NR];
    uint64_t hooked[UMVM_MAX_NR / 64];
    uint32_t active;     /* anything is served */
    uint32_t descriptors;
    uint32_t redirected; /* some process finds files of the host at other paths */
    uint32_t read_only;  /* some bind mount is read-only */
    uint32_t cautious;   /* processes may share memory unseen, or do */
    uint32_t pad;
    uint64_t names[16];  /* Bloom filter: last components that need a walk */
    uint32_t texts_used;
    uint32_t identity;   /* guests have ids of their own: those in `ids` need no question */
    uint64_t place_epoch; /* changes when some process gets another number (RLIMIT_LOCKS) */
    uint16_t text_index[2 * UMVM_TEXTS] __attribute__((aligned(4096))); /* hash → number in `texts` + 1 */
    struct umvm_text texts[UMVM_TEXTS] __attribute__((aligned(4096)));
    struct umvm_ids ids[UMVM_AGENT_IDS] __attribute__((aligned(4096)));
    struct umvm_owners_hint owners __attribute__((aligned(4096)));
};
_Static_assert(sizeof(struct umvm_route_area) <= UMVM_STATE - UMVM_ROUTE, "the areas overlap");

/* Views, and which process has which: by the number of its record, as umvm/guest/marks.py. */
struct umvm_places {
    struct {
        uint32_t view; /* index in `views`; UMVM_SPACES and more: not known here */
        uint32_t cwd;  /* the mount by which a process came to its working directory */
    } records[UMVM_AGENT_IDS];
    uint64_t views[UMVM_SPACES]; /* guest address of the present struct umvm_view; 0: ask */
    uint64_t generations[UMVM_SPACES];
    char rooms[UMVM_VIEWS][UMVM_VIEW_ROOM] __attribute__((aligned(4096)));
};
_Static_assert(sizeof(struct umvm_places) <= UMVM_OWNED - UMVM_PLACES, "the areas overlap");

/* Where a path leads on the host. Written by any guest, so that readers look at `sequence` (odd: being written)
   before and afterwards. */
struct umvm_translation {
    uint32_t sequence;
    uint16_t length, flags; /* of the text; of the bind mount */
    uint32_t id, same;      /* the bind mount, 0: none; the kernel gets there from the guest's own text */
    uint64_t hash, time;    /* of the guest's text and view; when it was walked, in units */
    char text[224];
};

/* What an exec hands to the loader; the loader is executed by a name that tells which of these is meant. */
struct umvm_mailbox {
    uint32_t owner;      /* process id + 1 of who fills it; 0: free */
    uint32_t count;      /* words in front */
    uint32_t name;       /* where in `text` what was executed is; what to load (the host's path) is at 0 */
    uint32_t front;      /* where the words are that take the place of argv[0] */
    uint64_t execs, loads; /* how often it was used */
    char loader[480];    /* the loader's name that means this mailbox; set once */
    char text[15872];
};

struct umvm_state {
    uint64_t since;      /* what was verified at this time (in units) or before is void */
    uint64_t cwd_epoch;  /* changes when any process may have come to stand somewhere else unseen */
    uint32_t traced;     /* some guest used ptrace */
    uint32_t pad;
    uint64_t dotted;     /* when something was remembered that depends on directories which it doesn't lead to */
    uint64_t link_names[16]; /* Bloom filter: names of links on the way of a translation */
    uint64_t prefixes[UMVM_PREFIXES] __attribute__((aligned(65536)));
    struct umvm_translation translations[UMVM_TRANSLATIONS] __attribute__((aligned(4096)));
    uint64_t gated, walked, unpatched; /* counters */
    uint8_t answered[UMVM_GATES] __attribute__((aligned(4096))); /* of each gate: has the supervisor answered? */
    struct umvm_notes notes __attribute__((aligned(4096)));
    struct umvm_mailbox mailboxes[UMVM_MAILBOXES] __attribute__((aligned(4096)));
};
_Static_assert(UMVM_SHOWN_SLOTS * sizeof(struct umvm_shown) == UMVM_OWNED_SIZE, "the area has another size");
_Static_assert(UMVM_STATE + sizeof(struct umvm_state) <= UMVM_PLACES, "the areas overlap");

/* Private to a process; fork copies it, exec starts anew. */
struct umvm_self {
    void (*entry)(void); /* where stubs jump to */
    uint64_t (*clock)(int, void *);
    uint64_t cwd_epoch, cwd_hash;
    uint64_t cwd_time;   /* when it was looked at, in units */
    uint32_t cwd_ok;     /* 1: it was the host's */
    uint32_t map_generation;
    uint32_t traced;
    uint32_t sandboxed;  /* it has a filter of its own, which may not like calls that it doesn't know of */
    uint32_t unlinked;   /* it is static, at a fixed address: code that it maps is not for it to jump to, but to translate */
    uint32_t exe_known;  /* `exe` is canonical, and not just how the program was called */
    uint64_t exe_dev, exe_ino;
    uint64_t place_epoch; /* `place` is the number of the process's record at this time */
    uint32_t place;
    uint32_t shared;     /* a child of vfork may use this memory: what is known is known of process `pid` */
    uint32_t pid;
    uint32_t cwd_mount, cwd_flags; /* the bind mount that the working directory is in, 0: none */
    uint32_t who;        /* changes with the rights of the process */
    uint64_t pages[128]; /* pages that were readable: number << 28 | generation */
    uint64_t bases[UMVM_STUB_PAGES]; /* load bias + 1 of the file whose stubs begin in that page */
    char exe[8192];      /* path of the program, and what was executed if that is another text */
};

/* A call that returns twice can't be made at a gate: where the kernel is to run it, the agent is told to. */
#define UMVM_GO 4094 /* an errno */
static inline int umvm_is_agents(int nr, uint64_t ip)
{
    return (nr == 56 || nr == 435) /* clone, clone3 */ && (ip - UMVM_GATE) / UMVM_GATE_SIZE < UMVM_GATES;
}

/* The supervisor answers a call; `ip` is where the call returns to. */
static inline void umvm_mark_answered(uint8_t *answered, uint64_t ip)
{
    uint64_t gate = (ip - UMVM_GATE) / UMVM_GATE_SIZE;
    if (answered && gate < UMVM_GATES)
        __atomic_store_n(&answered[gate], 1, __ATOMIC_RELEASE);
}

/* Verified paths: 40 bits of a hash and the time, as in hostlook.h. */
#define UMVM_UNIT_MS 4
#define UMVM_AGE 50u
#define UMVM_TIME 0xFFFFFFull
#endif
