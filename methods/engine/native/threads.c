/* A pool of threads that run one function together and meet between its parts. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#include "engine.h"

enum { MOST_THREADS = 256, SPINS = 500, IDLE_SPINS = 4000 }; /* before a thread lets others run; before it sleeps */

static pthread_mutex_t one_work = PTHREAD_MUTEX_INITIALIZER, lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static atomic_long generation, arrived, phase, busy;
static int64_t n_workers, wanted;
static pid_t owner; /* after a fork the workers are gone */
static Work work_now;
static void *what_now;

static void breathe(int64_t spins)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
    if (spins > SPINS) sched_yield();
}

void meet(int64_t threads)
{
    if (threads == 1) return;
    const long now = atomic_load(&phase);
    if (atomic_fetch_add(&arrived, 1) + 1 == threads) {
        atomic_store(&arrived, 0);
        atomic_store(&phase, now + 1);
        return;
    }
    for (int64_t spins = 0; atomic_load_explicit(&phase, memory_order_acquire) == now; spins++) breathe(spins);
}

static void *serve(void *number)
{
    const int64_t me = (int64_t)(intptr_t)number;
    long seen = 0;
    for (;;) {
        for (int64_t spins = 0; spins < IDLE_SPINS && atomic_load(&generation) == seen; spins++) breathe(0);
        pthread_mutex_lock(&lock);
        while (atomic_load(&generation) == seen) pthread_cond_wait(&wake, &lock);
        seen = atomic_load(&generation);
        const int64_t threads = wanted;
        pthread_mutex_unlock(&lock);
        if (me < threads) {
            work_now(what_now, me, threads);
            atomic_fetch_sub(&busy, 1);
        }
    }
    return 0;
}

/* Workers 1 .. threads - 1 exist; -> how many threads there are, the caller among them. */
static int64_t hire(int64_t threads)
{
    if (owner != getpid()) {
        owner = getpid();
        n_workers = 0;
        atomic_store(&generation, 0);
        pthread_mutex_init(&lock, 0);
        pthread_cond_init(&wake, 0);
    }
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    while (n_workers < threads - 1) {
        pthread_t made;
        if (pthread_create(&made, 0, serve, (void *)(intptr_t)(n_workers + 1))) break;
        pthread_detach(made);
        n_workers++;
    }
    return n_workers + 1 < threads ? n_workers + 1 : threads;
}

void on_threads(Work work, void *what, int64_t threads)
{
    if (threads <= 1) {
        work(what, 0, 1);
        return;
    }
    pthread_mutex_lock(&one_work);
    threads = hire(threads);
    if (threads > 1) {
        pthread_mutex_lock(&lock);
        work_now = work, what_now = what, wanted = threads;
        atomic_store(&busy, threads - 1);
        atomic_store(&arrived, 0);
        atomic_fetch_add(&generation, 1);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
    }
    work(what, 0, threads);
    if (threads > 1)
        for (int64_t spins = 0; atomic_load(&busy); spins++) breathe(spins);
    pthread_mutex_unlock(&one_work);
}
