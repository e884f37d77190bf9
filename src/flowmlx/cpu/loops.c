/* Compiled by libraries.py: called by libmlx.so in place of what it imports, see jit.py.

   In C, not in Python, whose first line a waiting signal would end, with no folder to return. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <stdlib.h>

/* std::filesystem::path of libstdc++: a std::string, which is where its text is, its length and room
   for 15 letters or the size of longer ones; then a list of its parts, left to functions of its own. */
struct path {
    char *text;
    size_t length, size, room, parts;
};
struct path (*copy_of_path)(const struct path *); /* std::filesystem::absolute: here, a copy */
void (*no_parts)(size_t *parts);                  /* path::_List::_List */
void (*find_parts)(struct path *);                /* path::_M_split_cmpts */
static struct path kept;

/* Keep a folder, and return the text of a copy as MLX will get it. A path of more than 15 letters has
   them outside of itself, so that it can be moved. What was kept before may be in use. */
const char *keep_folder(const char *text) {
    struct path new = {strdup(text), strlen(text), strlen(text), 0, 0};
    if (!new.text || new.length < 16)
        return NULL;
    no_parts(&new.parts);
    find_parts(&new);
    kept = new;
    return copy_of_path(&kept).text;
}

struct path kept_folder(void) { return copy_of_path(&kept); }

static char options[256], folder[4096], unfinished[4096];

void compile_with(const char *with, const char *within, const char *until_done) {
    snprintf(options, sizeof options, "%s", with);
    snprintf(folder, sizeof folder, "%s", within);
    snprintf(unfinished, sizeof unfinished, "%s", until_done);
}

/* MLX's command with the options, for a library that only the user can write to, and that is there
   when it is whole: MLX before 0.32.4 compiles it in its place. Any other command, and one outside
   of the folder, as it is. */
char *changed_command(const char *command) {
    static const char start[] = "g++ -std=c++17 -O3 ", option[] = " -o \"", end[] = "\" 2>&1";
    static int count;
    const char *rest = command + strlen(start), *made = strstr(command, option);
    const char *last = command + strlen(command) - strlen(end);
    char *result;
    int written, number;
    if (strncmp(command, start, strlen(start)) || !made || !*folder
        || strncmp(made += strlen(option), folder, strlen(folder)) || strcmp(last, end))
        return strdup(command);
    number = __sync_fetch_and_add(&count, 1); /* threads may compile side by side */
    written = asprintf(&result, "umask 077; %s%s%.*s\"%s%d.so\" 2>&1"
                       " && mv -f \"%s%d.so\" \"%.*s\"",
                       start, options, (int)(made - 1 - rest), rest, unfinished, number,
                       unfinished, number, (int)(last - made), made);
    return written < 0 ? NULL : result;
}

FILE *start_compiler(const char *command, const char *mode) {
    char *ours = changed_command(command);
    FILE *pipe = ours ? popen(ours, mode) : NULL;
    free(ours);
    return pipe;
}
