/* Compiled by native.py. OpenMP's simd directives need no OpenMP: they allow vector registers. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TOO_LARGE 1e280

enum { NO_MEMORY = -1, BAD_NUMBER = -2, BAD_SIZE = -3 };

/* Mass that flows from a row to a column; `next`: another to the same column, -1 after the last. */
struct flow {
    int row, column, mass, next;
};

/* The flow of `row` in a list, -1 where there is none. */
static int find(const struct flow *flows, int e, int row)
{
    while (e >= 0 && flows[e].row != row)
        e = flows[e].next;
    return e;
}

/* Whether a number is NaN, infinite or above TOO_LARGE. By its bits, which order sizes as the numbers
 * do, as the compiler takes all numbers for finite. */
static int is_bad(double x)
{
    const double limit = TOO_LARGE;
    int64_t size, largest;
    memcpy(&size, &x, sizeof size);
    memcpy(&largest, &limit, sizeof largest);
    return (size & INT64_MAX) > largest;
}

/* Shortest augmenting paths (Jonker & Volgenant 1987) from n rows, each with a mass of `supply`,
 * to m columns, each with room for `demand`: n supply = m demand. cost: n x m.
 *
 * v: potentials of the columns, any to start with, optimal in the end. flows: from here, with room
 * for one more than pairs can have mass; some may have none. Returns how many there are, or
 * NO_MEMORY; BAD_NUMBER where one is not finite, or above TOO_LARGE, which those that mark a column
 * as out of reach must exceed by far; BAD_SIZE where masses do not come out even.
 *
 * Invariant: cost[i][j] >= u[i] + v[j], with equality where mass flows.
 */
int transport(int n, int m, int supply, int demand, const double *cost, double *v,
              struct flow *flows)
{
    if (n < 1 || m < 1 || supply < 1 || demand < 1 || (int64_t)n * supply != (int64_t)m * demand)
        return BAD_SIZE;
    size_t rows = n, columns = m;
    double *u = malloc((2 * rows + 3 * columns) * sizeof *u);
    int *left = malloc((4 * rows + 4 * columns) * sizeof *left);
    if (!u || !left) {
        free(u);
        free(left);
        return NO_MEMORY;
    }
    double *entered_at = u + rows, *distance = entered_at + rows;
    double *potential = distance + columns, *reached_at = potential + columns;
    int *entered = left + rows, *through = entered + rows, *is_entered = through + rows;
    int *room = is_entered + rows, *from = room + columns, *reached = from + columns;
    int *first = reached + columns, count = 0, unused = -1, bad = 0;

    /* Each row sends what it can to its nearest column, of equal ones to one with room. */
    for (int j = 0; j < m; j++) {
        room[j] = demand;
        first[j] = -1;
        bad |= is_bad(v[j]);
    }
    for (int i = 0; i < n; i++) {
        const double *c = cost + i * columns;
        double least = DBL_MAX;
#pragma omp simd reduction(min : least) reduction(| : bad)
        for (int j = 0; j < m; j++) {
            double reduced = c[j] - v[j];
            least = reduced < least ? reduced : least;
            bad |= is_bad(c[j]);
        }
        if (bad) {
            free(u);
            free(left);
            return BAD_NUMBER;
        }
        int j = 0;
        while (j < m - 1 && c[j] - v[j] != least)
            j++;
        for (int k = j + 1; k < m && room[j] == 0; k++)
            j = c[k] - v[k] == least ? k : j;
        int sent = supply < room[j] ? supply : room[j];
        u[i] = least;
        left[i] = supply - sent;
        room[j] -= sent;
        is_entered[i] = 0;
        if (sent) {
            flows[count] = (struct flow){i, j, sent, first[j]};
            first[j] = count++;
        }
    }

    /* What is left in a row goes along shortest paths to columns with room (Dijkstra's algorithm).
     * A path leaves a full column by a row that sends to it, which then sends elsewhere. */
    for (int start = 0; start < n;) {
        if (left[start] == 0) {
            start++;
            continue;
        }
        for (int j = 0; j < m; j++) {
            distance[j] = DBL_MAX;
            potential[j] = v[j];
        }
        int row_count = 1, column_count = 0, done = 0, column;
        double length = 0;
        entered[0] = start;
        entered_at[0] = 0;
        through[start] = -1;
        is_entered[start] = 1;
        for (;;) {
            double least = DBL_MAX;
            for (; done < row_count; done++) {
                int row = entered[done];
                const double *c = cost + row * columns;
                double base = length - u[row];
                least = DBL_MAX;
#pragma omp simd reduction(min : least)
                for (int j = 0; j < m; j++) {
                    double d = base + (c[j] - potential[j]);
                    int nearer = d < distance[j];
                    distance[j] = nearer ? d : distance[j];
                    from[j] = nearer ? row : from[j];
                    least = distance[j] < least ? distance[j] : least;
                }
            }
            column = 0;
            while (column < m - 1 && distance[column] != least)
                column++;
            length = least;
            reached[column_count] = column;
            reached_at[column_count++] = length;
            if (room[column] > 0)
                break;
            /* Out of reach from here on. */
            distance[column] = DBL_MAX;
            potential[column] = -DBL_MAX;
            for (int e = first[column]; e >= 0; e = flows[e].next) {
                int row = flows[e].row;
                if (!is_entered[row]) {
                    is_entered[row] = 1;
                    through[row] = e;
                    entered[row_count] = row;
                    entered_at[row_count++] = length;
                }
            }
            if (done == row_count)
                done--; /* All were there: the last once more, for the least distance. */
        }
        for (int k = 0; k < row_count; k++) {
            u[entered[k]] += length - entered_at[k];
            is_entered[entered[k]] = 0;
        }
        for (int k = 0; k < column_count; k++)
            v[reached[k]] -= length - reached_at[k];

        int sent = left[start] < room[column] ? left[start] : room[column];
        for (int e = through[from[column]]; e >= 0; e = through[from[flows[e].column]])
            sent = flows[e].mass < sent ? flows[e].mass : sent;
        left[start] -= sent;
        room[column] -= sent;
        for (;;) {
            int row = from[column], old = through[row], e = find(flows, first[column], row);
            if (e < 0) {
                e = unused >= 0 ? unused : count++;
                unused = unused >= 0 ? flows[unused].next : -1;
                flows[e] = (struct flow){row, column, 0, first[column]};
                first[column] = e;
            }
            flows[e].mass += sent;
            if (old < 0)
                break;
            column = flows[old].column;
            flows[old].mass -= sent;
            if (flows[old].mass == 0) {
                int *link = &first[column];
                while (*link != old)
                    link = &flows[*link].next;
                *link = flows[old].next;
                flows[old].next = unused;
                unused = old;
            }
        }
    }
    free(u);
    free(left);
    return count;
}

/* The tree of k, in a forest of nodes that point upwards; flattens it on the way. */
static int top(int *up, int k)
{
    while (up[k] != k)
        k = up[k] = up[up[k]];
    return k;
}

/* Whether the `count` flows of a plan with mass, of potentials v, are proved to be the only best plan.
 *
 * Two plans differ by cycles, in which at most min(n, m) pairs gain mass and as many lose it. In one
 * that makes the plan no worse the reduced costs c - u - v of those that gain sum to no more than
 * those of the others, which are 0 but for rounding. So only pairs near that can gain. There is no
 * such cycle where flows make trees, and the pairs near lead from one to another in no circle.
 *
 * Returns 1 for a proof, 0 for none, or NO_MEMORY.
 */
int is_unique(int n, int m, const double *cost, const double *v, const struct flow *flows, int count)
{
    size_t columns = m, nodes = (size_t)n + m, most = 4 * nodes;
    double *u = malloc(n * sizeof *u), error = 0, largest = 0;
    int *up = malloc((4 * nodes + 3 * most + n) * sizeof *up), unique = 0;
    if (!u || !up) {
        free(u);
        free(up);
        return NO_MEMORY;
    }
    int *entries = up + nodes, *first = entries + nodes, *queue = first + nodes;
    int *from = queue + nodes, *to = from + most, *next = to + most;
    int *sends = next + most;
    for (int k = 0; k < (int)nodes; k++) {
        up[k] = k;
        entries[k] = 0;
        first[k] = -1;
    }
    for (int i = 0; i < n; i++)
        sends[i] = 0;
    for (int e = 0; e < count; e++) {
        int row = top(up, flows[e].row), column = top(up, n + flows[e].column);
        if (row == column)
            goto end;
        up[row] = column;
        sends[flows[e].row]++;
        u[flows[e].row] = cost[flows[e].row * columns + flows[e].column] - v[flows[e].column];
    }
    for (int e = 0; e < count; e++) {
        double c = cost[flows[e].row * columns + flows[e].column];
        error = fmax(error, fabs(c - v[flows[e].column] - u[flows[e].row]));
    }
    for (int i = 0; i < n; i++)
        largest = fmax(largest, fabs(u[i]));
    for (int j = 0; j < m; j++)
        largest = fmax(largest, fabs(v[j]));

    double limit = (n < m ? n : m) * (error + 8 * DBL_EPSILON * largest);
    size_t found = 0;
    for (int i = 0; i < n; i++) {
        const double *c = cost + i * columns;
        double high = u[i] + limit;
        int near = 0, tree = top(up, i);
#pragma omp simd reduction(+ : near)
        for (int j = 0; j < m; j++)
            near += c[j] - v[j] <= high;
        int within = sends[i]; /* The flows themselves are near. */
        for (int j = 0; near > sends[i] && j < m; j++) {
            if (c[j] - v[j] > high)
                continue;
            int other = top(up, n + j);
            if (other == tree && within-- > 0)
                continue;
            if (other == tree || found == most) /* One closes a circle with flows. */
                goto end;
            from[found] = tree;
            to[found] = other;
            entries[other]++;
            found++;
        }
    }

    /* Take away trees to which no pair leads, and the pairs that lead from them, until none is left. */
    for (size_t e = 0; e < found; e++) {
        next[e] = first[from[e]];
        first[from[e]] = (int)e;
    }
    int taken = 0, waiting = 0;
    for (int k = 0; k < (int)nodes; k++)
        if (up[k] == k && entries[k] == 0)
            queue[waiting++] = k;
    size_t left = found;
    while (taken < waiting)
        for (int e = first[queue[taken++]]; e >= 0; e = next[e]) {
            left--;
            if (--entries[to[e]] == 0)
                queue[waiting++] = to[e];
        }
    unique = left == 0;
end:
    free(u);
    free(up);
    return unique;
}
