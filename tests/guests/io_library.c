/* A shared library with code, data and a relocation. */
static int calls;
const char *greeting = "hello";
int count(void) { return ++calls; }
