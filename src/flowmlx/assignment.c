/* Compiled by native.py. OpenMP's simd directives need no OpenMP: they allow vector registers. */

#include <float.h>
#include <math.h>
#include <stdlib.h>

#define TOO_LARGE 1e280

/* Shortest augmenting paths (Jonker & Volgenant 1987) on an n x n matrix of finite costs.
 *
 * v: potentials of the columns, any to start with, optimal in the end. column_of, row_of: the
 * permutation and its inverse, from here. Returns 0, 1 where memory is missing, or 2 where numbers
 * are above TOO_LARGE, which those that mark a column as out of reach must exceed by far.
 *
 * Invariant: cost[i][j] >= u[i] + v[j], with equality for pairs that are matched.
 */
int assign(int n, const double *cost, double *v, int *column_of, int *row_of)
{
    size_t size = n;
    double *u = malloc(4 * size * sizeof *u);
    int *from = malloc(2 * size * sizeof *from);
    if (!u || !from) {
        free(u);
        free(from);
        return 1;
    }
    double *distance = u + size, *potential = distance + size, *reached_at = potential + size;
    int *reached = from + size;

    /* Each row takes its nearest column, where that is free. */
    for (int j = 0; j < n; j++)
        row_of[j] = -1;
    for (int i = 0; i < n; i++) {
        const double *c = cost + i * size;
        double least = DBL_MAX, largest = 0;
#pragma omp simd reduction(min : least) reduction(max : largest)
        for (int j = 0; j < n; j++) {
            double reduced = c[j] - v[j], span = fabs(c[j]) + fabs(reduced);
            least = reduced < least ? reduced : least;
            largest = span > largest ? span : largest;
        }
        if (largest > TOO_LARGE) {
            free(u);
            free(from);
            return 2;
        }
        int j = 0;
        while (j < n - 1 && c[j] - v[j] != least)
            j++;
        u[i] = least;
        column_of[i] = -1;
        if (row_of[j] < 0) {
            row_of[j] = i;
            column_of[i] = j;
        }
    }

    /* From each other row, the shortest path to a free column (Dijkstra's algorithm). */
    for (int start = 0; start < n; start++) {
        if (column_of[start] >= 0)
            continue;
        for (int j = 0; j < n; j++) {
            distance[j] = DBL_MAX;
            potential[j] = v[j];
        }
        int count = 0, row = start, column = 0;
        double length = 0;
        for (;;) {
            const double *c = cost + row * size;
            double base = length - u[row], least = DBL_MAX;
#pragma omp simd reduction(min : least)
            for (int j = 0; j < n; j++) {
                double d = base + (c[j] - potential[j]);
                int nearer = d < distance[j];
                distance[j] = nearer ? d : distance[j];
                from[j] = nearer ? row : from[j];
                least = distance[j] < least ? distance[j] : least;
            }
            column = 0;
            while (column < n - 1 && distance[column] != least)
                column++;
            length = least;
            reached[count] = column;
            reached_at[count] = length;
            count++;
            if (row_of[column] < 0)
                break;
            /* Out of reach from here on. */
            distance[column] = DBL_MAX;
            potential[column] = -DBL_MAX;
            row = row_of[column];
        }

        u[start] += length;
        for (int k = 0; k < count; k++) {
            double change = length - reached_at[k];
            v[reached[k]] -= change;
            if (row_of[reached[k]] >= 0)
                u[row_of[reached[k]]] += change;
        }
        for (row = -1; row != start;) {
            row = from[column];
            int next = column_of[row];
            row_of[column] = row;
            column_of[row] = column;
            column = next;
        }
    }
    free(u);
    free(from);
    return 0;
}
