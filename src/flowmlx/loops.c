/* Compiled by native.py: called by libmlx.so in place of what it imports, see jit.py.

   In C, not in Python, whose first line a waiting signal would end, with no folder to return. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <stdlib.h>

/* std::filesystem::path of libstdc++, as large as there; only its own functions look inside. */
struct path { const char *words[5]; };
struct path (*temporary_folder)(void);            /* std::filesystem::temp_directory_path */
struct path (*copy_of_path)(const struct path *); /* std::filesystem::absolute: here, a copy */
static struct path kept;

/* Keep what the temporary folder is now; return its name, the first word of a path. The name is
   longer than the 15 letters that would lie in the path itself, so that it can be moved. */
const char *keep_folder(void) { kept = temporary_folder(); return kept.words[0]; }

struct path kept_folder(void) { return copy_of_path(&kept); }

static const char START[] = "g++ -std=c++17 -O3 ", MADE[] = " -o \"", END[] = "\" 2>&1";
static char options[256], folder[4096], unfinished[4096];

void compile_with(const char *with, const char *within, const char *until_done) {
    snprintf(options, sizeof options, "%s", with);
    snprintf(folder, sizeof folder, "%s", within);
    snprintf(unfinished, sizeof unfinished, "%s", until_done);
}

/* MLX's command with the options, and the library there when it is whole: MLX before 0.32.4
   compiles it in its place. Any other command, and one outside of the folder, as it is. */
char *changed_command(const char *command) {
    const char *rest = command + strlen(START), *made = strstr(command, MADE);
    size_t length = strlen(command), end = strlen(END);
    char *result;
    int written;
    if (strncmp(command, START, strlen(START)) || !made || !*folder
        || strncmp(made + strlen(MADE), folder, strlen(folder))
        || strcmp(command + length - end, END))
        return strdup(command);
    made += strlen(MADE);
    written = asprintf(&result, "%s%s%.*s\"%s\" 2>&1 && mv -f \"%s\" \"%.*s\"", START, options,
                       (int)(made - 1 - rest), rest, unfinished, unfinished,
                       (int)(command + length - end - made), made);
    return written < 0 ? NULL : result;
}

FILE *start_compiler(const char *command, const char *mode) {
    char *ours = changed_command(command);
    FILE *pipe = ours ? popen(ours, mode) : NULL;
    free(ours);
    return pipe;
}
