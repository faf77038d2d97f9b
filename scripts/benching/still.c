/* The bench's own programs, in C so that they cost nothing beside what they measure:

   still write FILE BYTES PAUSE_US ROUND   appends BYTES again and again, pausing after each, from the start of FILE
                                           again after ROUND writes, and knows how long it stood still at most
   still freeze parallel|disk MOUNTPOINT...
                                           syncs all in parallel, or one after another as those on one disk (and then
                                           all in parallel); freezes all in parallel with the kernel's grace periods
                                           expedited (as virtagentd does), thaws all in parallel: what C can do with
                                           nobody to answer to

   A question a line comes on standard input, its answer goes out as one line. Times are CLOCK_MONOTONIC seconds. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void answer(const char *text) {
    puts(text);
    fflush(stdout);
}

/* -- write */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned long writes;
static double longest, last;
static struct { double from, until; } gaps[4096];
static unsigned gap_count;
#define GAP 0.002 /* seconds: what is shorter is the writer's own pause */
static const char *file;
static size_t size, round_;
static long pause_us;

static void *write_on(void *unused) {
    int fd = open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    char *block = malloc(size);
    struct timespec rest = {pause_us / 1000000, pause_us % 1000000 * 1000};
    if (fd < 0 || !block)
        die(file);
    memset(block, 'x', size);
    for (;;) {
        if (pwrite(fd, block, size, (off_t)(writes % round_) * size) != (ssize_t)size)
            die(file);
        pthread_mutex_lock(&lock);
        double at = now();
        if (at - last > longest)
            longest = at - last;
        if (at - last >= GAP && gap_count < sizeof gaps / sizeof *gaps) {
            gaps[gap_count].from = last;
            gaps[gap_count++].until = at;
        }
        last = at;
        writes++;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        nanosleep(&rest, NULL);
    }
    return unused;
}

static void writer(char **arguments) {
    pthread_t thread;
    char question[64];
    file = arguments[0];
    size = strtoul(arguments[1], NULL, 10);
    pause_us = strtol(arguments[2], NULL, 10);
    round_ = strtoul(arguments[3], NULL, 10);
    last = now();
    if (pthread_create(&thread, NULL, write_on, NULL))
        die("thread");
    answer("\"ready\"");
    while (fgets(question, sizeof question, stdin)) {
        pthread_mutex_lock(&lock);
        if (!strncmp(question, "moving", 6)) {
            /* Two: the one under way may have begun long ago. */
            for (unsigned long until = writes + 2; writes < until;)
                pthread_cond_wait(&changed, &lock);
        } else if (!strncmp(question, "reset", 5)) {
            longest = 0;
            gap_count = 0;
            last = now();
        } else if (!strncmp(question, "gaps", 4)) {
            putchar('[');
            for (unsigned i = 0; i < gap_count; i++)
                printf("%s[%.6f, %.6f]", i ? ", " : "", gaps[i].from, gaps[i].until);
            puts("]");
            fflush(stdout);
            pthread_mutex_unlock(&lock);
            continue;
        }
        double open_ = now() - last;
        printf("{\"writes\": %lu, \"longest\": %.6f, \"now\": %.6f}\n", writes, open_ > longest ? open_ : longest, open_);
        fflush(stdout);
        pthread_mutex_unlock(&lock);
    }
    _exit(0);
}

/* -- freeze */

enum act { SYNC, FREEZE, THAW };
static enum act act;
static pthread_barrier_t begin, end;
static int failed;

static void *hand(void *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        die(path);
    for (;;) {
        pthread_barrier_wait(&begin);
        int result = act == SYNC ? syncfs(fd) : ioctl(fd, act == FREEZE ? FIFREEZE : FITHAW, 0);
        if (result)
            failed = errno;
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static void all(enum act what) {
    act = what;
    pthread_barrier_wait(&begin);
    pthread_barrier_wait(&end);
}

static int expedite = -1;

static void expedited(const char *yes) {
    if (expedite >= 0 && pwrite(expedite, yes, 1, 0) != 1)
        die("rcu_expedited");
}

static void freezer(int by_disk, int count, char **paths) {
    char question[64], said[64];
    int fds[count];
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    pthread_barrier_init(&begin, NULL, count + 1);
    pthread_barrier_init(&end, NULL, count + 1);
    for (int i = 0; i < count; i++) {
        if (pthread_create(&thread, &attributes, hand, paths[i]))
            die("thread");
        if ((fds[i] = open(paths[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
            die(paths[i]);
    }
    char before = 0;
    expedite = open("/sys/kernel/rcu_expedited", O_RDWR | O_CLOEXEC);
    if (expedite >= 0 && (pread(expedite, &before, 1, 0) != 1 || before != '0'))
        expedite = -1; /* somebody wants it so */
    answer("ready");
    while (fgets(question, sizeof question, stdin)) {
        failed = 0;
        if (!strncmp(question, "freeze", 6)) {
            for (int i = 0; by_disk && i < count; i++)
                if (syncfs(fds[i]))
                    failed = errno;
            all(SYNC);
            snprintf(said, sizeof said, "ok %.6f", now());
            expedited("1");
            all(FREEZE);
            expedited("0");
        } else {
            strcpy(said, "ok");
            all(THAW);
        }
        answer(failed ? strerror(failed) : said);
    }
    _exit(0);
}

int main(int count, char **arguments) {
    if (count == 6 && !strcmp(arguments[1], "write"))
        writer(arguments + 2);
    else if (count > 3 && !strcmp(arguments[1], "freeze"))
        freezer(!strcmp(arguments[2], "disk"), count - 3, arguments + 3);
    fputs("still write FILE BYTES PAUSE_US ROUND | still freeze parallel|disk MOUNTPOINT...\n", stderr);
    return 2;
}
