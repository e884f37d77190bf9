/* Compiled by native.py. OpenMP's simd directives need no OpenMP: they allow vector registers. */

#include <float.h>
#include <math.h>
#include <stdlib.h>

#define TOO_LARGE 1e280

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

/* Shortest augmenting paths (Jonker & Volgenant 1987) from n rows, each with a mass of `supply`,
 * to m columns, each with room for `demand`: n supply = m demand. cost: n x m, finite.
 *
 * v: potentials of the columns, any to start with, optimal in the end. flows: from here, with room
 * for one more than pairs can have mass; some may have none. Returns how many there are, -1 where
 * memory is missing, or -2 where numbers are above TOO_LARGE, which those that mark a column as out
 * of reach must exceed by far.
 *
 * Invariant: cost[i][j] >= u[i] + v[j], with equality where mass flows.
 */
int transport(int n, int m, int supply, int demand, const double *cost, double *v,
              struct flow *flows)
{
    size_t rows = n, columns = m;
    double *u = malloc((2 * rows + 3 * columns) * sizeof *u);
    int *left = malloc((4 * rows + 4 * columns) * sizeof *left);
    if (!u || !left) {
        free(u);
        free(left);
        return -1;
    }
    double *entered_at = u + rows, *distance = entered_at + rows;
    double *potential = distance + columns, *reached_at = potential + columns;
    int *entered = left + rows, *through = entered + rows, *is_entered = through + rows;
    int *room = is_entered + rows, *from = room + columns, *reached = from + columns;
    int *first = reached + columns, count = 0, unused = -1;

    /* Each row sends what it can to its nearest column. */
    for (int j = 0; j < m; j++) {
        room[j] = demand;
        first[j] = -1;
    }
    for (int i = 0; i < n; i++) {
        const double *c = cost + i * columns;
        double least = DBL_MAX, largest = 0;
#pragma omp simd reduction(min : least) reduction(max : largest)
        for (int j = 0; j < m; j++) {
            double reduced = c[j] - v[j], span = fabs(c[j]) + fabs(reduced);
            least = reduced < least ? reduced : least;
            largest = span > largest ? span : largest;
        }
        if (largest > TOO_LARGE) {
            free(u);
            free(left);
            return -2;
        }
        int j = 0;
        while (j < m - 1 && c[j] - v[j] != least)
            j++;
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
