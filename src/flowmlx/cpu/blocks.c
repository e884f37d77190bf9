/* Matrix products on several threads, of which none depends on the others.

   A product is cut into blocks, which the calling thread and helpers take in turn. Threads of a BLAS
   divide the work beforehand and meet within a product: where another process holds one of them up,
   all wait. Here a helper that is late finds less left to do, and one that never comes is not missed.
   The blocks depend on the sizes and the number of threads alone, so that it makes no difference to
   the result who computes which. */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>

typedef void product(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha,
                     const float *a, int lda, const float *b, int ldb, float beta, float *c,
                     int ldc);

enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111 };

/* Of a block: multiplications, and rows or columns of what was cut, at the least, as each block
   prepares its operands anew. Blocks for each thread at the most. Turns that a helper waits for more
   work before it sleeps, some 0.1 ms: as long as it takes to wake one up. */
static const double LEAST = 1 << 20;
enum { NARROWEST = 128, BLOCKS = 4, PATIENCE = 200 };

/* Set by blocks.py: the product of the library, which takes one thread, and threads in all. */
product *sgemm_of_library;
int threads;

static struct {
    int transpose_a, transpose_b, m, n, k, lda, ldb, ldc, rows, columns;
    float alpha, beta;
    const float *a, *b;
    float *c;
} job;

/* What is to do, in one word, so that it is taken whole: the number of the job (32 bits), of its
   blocks (16) and of those taken (16). */
static uint64_t board;
static int finished, asleep, helpers;
static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER, sleepers = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;

static int left(uint64_t word) { return (int)(word >> 16 & 0xffff) - (int)(word & 0xffff); }

/* Whether there is something to do for the helper of a number, from 1. */
static int wanted(intptr_t number)
{
    return number < __atomic_load_n(&threads, __ATOMIC_SEQ_CST) &&
           left(__atomic_load_n(&board, __ATOMIC_SEQ_CST)) > 0;
}

static void compute(int block)
{
    int row = block / job.columns, column = block % job.columns;
    int64_t top = (int64_t)job.m * row / job.rows, end = (int64_t)job.m * (row + 1) / job.rows;
    int64_t first = (int64_t)job.n * column / job.columns;
    int64_t last = (int64_t)job.n * (column + 1) / job.columns;
    const float *a = job.a + (job.transpose_a == NO_TRANSPOSE ? top * job.lda : top);
    const float *b = job.b + (job.transpose_b == NO_TRANSPOSE ? first : first * job.ldb);
    sgemm_of_library(ROW_MAJOR, job.transpose_a, job.transpose_b, (int)(end - top),
                     (int)(last - first), job.k, job.alpha, a, job.lda, b, job.ldb, job.beta,
                     job.c + top * job.ldc + first, job.ldc);
}

static void work(void)
{
    uint64_t word = __atomic_load_n(&board, __ATOMIC_SEQ_CST);
    while (left(word) > 0)
        if (__atomic_compare_exchange_n(&board, &word, word + 1, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {
            compute((int)(word & 0xffff)); /* the job stays until its last block is finished */
            __atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
            word = __atomic_load_n(&board, __ATOMIC_SEQ_CST);
        }
}

static void *help(void *number)
{
    for (;;) {
        for (int turn = 0; turn < PATIENCE; turn++) {
            if (wanted((intptr_t)number)) {
                work();
                turn = 0;
            }
            sched_yield();
        }
        pthread_mutex_lock(&sleepers);
        __atomic_add_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
        while (!wanted((intptr_t)number))
            pthread_cond_wait(&wake, &sleepers);
        __atomic_sub_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
        pthread_mutex_unlock(&sleepers);
    }
    return 0;
}

/* A child process has none of the threads, whatever they held. */
static void begin_anew(void)
{
    helpers = asleep = 0;
    board = 0;
    pthread_mutex_init(&busy, 0);
    pthread_mutex_init(&sleepers, 0);
    pthread_cond_init(&wake, 0);
}

static void start_helpers(void)
{
    static int prepared;
    sigset_t all, before;
    pthread_t thread;
    if (helpers >= threads - 1)
        return;
    if (!prepared)
        prepared = !pthread_atfork(0, 0, begin_anew);
    sigfillset(&all); /* signals are for the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (helpers < threads - 1) {
        if (pthread_create(&thread, 0, help, (void *)(intptr_t)(helpers + 1)))
            break;
        pthread_detach(thread);
        helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, 0);
}

void sgemm_in_blocks(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha,
                     const float *a, int lda, const float *b, int ldb, float beta, float *c,
                     int ldc)
{
    double blocks = (double)m * n * k / LEAST;
    int rows = 1, columns = 1;
    while (2 * rows * columns <= BLOCKS * threads && 2 * rows * columns <= blocks) {
        int64_t longer = m / rows >= n / columns ? m / rows : n / columns;
        if (longer < 2 * NARROWEST)
            break;
        if (longer == m / rows)
            rows *= 2;
        else
            columns *= 2;
    }
    if (rows * columns < 2 || threads < 2 || order != ROW_MAJOR || pthread_mutex_trylock(&busy)) {
        sgemm_of_library(order, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c,
                         ldc);
        return;
    }
    start_helpers();
    job.transpose_a = transpose_a, job.transpose_b = transpose_b;
    job.m = m, job.n = n, job.k = k, job.lda = lda, job.ldb = ldb, job.ldc = ldc;
    job.rows = rows, job.columns = columns, job.alpha = alpha, job.beta = beta;
    job.a = a, job.b = b, job.c = c;
    int count = rows * columns;
    __atomic_store_n(&finished, 0, __ATOMIC_SEQ_CST);
    uint64_t number = (__atomic_load_n(&board, __ATOMIC_SEQ_CST) >> 32) + 1;
    __atomic_store_n(&board, number << 32 | (uint64_t)count << 16, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&asleep, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&sleepers);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleepers);
    }
    work();
    while (__atomic_load_n(&finished, __ATOMIC_SEQ_CST) < count)
        sched_yield();
    pthread_mutex_unlock(&busy);
}
