/* A file system that does not flush folders, or not without FOLDER_ERRNO, by LD_PRELOAD.
   With NO_LOCKS it has no locks, either. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>

int fsync(int descriptor) {
    struct stat status;
    const char *error = getenv("FOLDER_ERRNO");
    if (error && fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)) {
        errno = atoi(error);
        return -1;
    }
    error = getenv("FILE_ERRNO");
    if (error && fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode)) {
        errno = atoi(error);
        return -1;
    }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(descriptor);
}

int fcntl64(int descriptor, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (getenv("NO_LOCKS") && (command == F_SETLK || command == F_SETLKW)) {
        errno = ENOLCK;
        return -1;
    }
    return ((int (*)(int, int, void *))dlsym(RTLD_NEXT, "fcntl64"))(descriptor, command, argument);
}

int fcntl(int descriptor, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return fcntl64(descriptor, command, argument);
}

int flock(int descriptor, int operation) {
    if (getenv("NO_LOCKS")) {
        errno = ENOLCK;
        return -1;
    }
    return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(descriptor, operation);
}
