/* A bridge in C, in one file and without libraries.
 *
 *     cc -O2 -Wall -o bridge examples/c/bridge.c
 *     quaybridge worker --service work --bridge ./bridge
 *     quaybridge conformance -- ./bridge
 *
 * Put your own commands where `serve` looks for them; the rest of this file is the protocol (docs/wire.md). JSON is
 * read where it lies: a value is a span of the payload, checked once, and what is only passed on is never decoded.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FRAME_LIMIT (16u * 1024 * 1024) /* bytes of a payload */
#define MAX_DEPTH 128
#define MAX_ID ((1ull << 53) - 1)
#define CONCURRENCY 8  /* requests at once */
#define REMEMBERED 256 /* cancels that came before their request */

static int source, sink; /* where requests come from and replies go: private copies of 0 and 1 */

/* Memory and time. */

static void *allocate(size_t size)
{
    void *memory = malloc(size);
    if (!memory)
        abort();
    return memory;
}

static double now(void)
{
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return moment.tv_sec + moment.tv_nsec / 1e9;
}

/* JSON: each of these reads from `at`, and gives the end of what it read, or NULL if that is no JSON. */

typedef struct {
    const char *start, *end;
} Span;

static const char *skip_space(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
        at++;
    return at;
}

/* What the escape \uXXXX at `at` stands for, or −1 if there is none. */
static int read_unit(const char *at, const char *end)
{
    static const char digits[] = "0123456789abcdef";
    int value = 0;
    if (end - at < 6 || at[0] != '\\' || at[1] != 'u')
        return -1;
    for (int n = 2; n < 6; n++) {
        /* A letter in lower case, which digits are already: and nothing below them. */
        const char *digit = at[n] >= '0' ? strchr(digits, at[n] | 0x20) : NULL;
        if (!digit)
            return -1;
        value = value * 16 + (int)(digit - digits);
    }
    return value;
}

/* One character of UTF-8, of two bytes or more: neither overlong, nor a surrogate, nor past U+10FFFF. */
static const char *skip_character(const char *at, const char *end)
{
    unsigned char first = *at;
    int more = first < 0xC2 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF5 ? 3 : 0;
    if (!more || end - at <= more)
        return NULL;
    for (int n = 1; n <= more; n++)
        if (((unsigned char)at[n] & 0xC0) != 0x80)
            return NULL;
    unsigned char second = at[1];
    if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) || (first == 0xF0 && second < 0x90) ||
        (first == 0xF4 && second > 0x8F))
        return NULL;
    return at + more + 1;
}

static const char *skip_string(const char *at, const char *end)
{
    if (at == end || *at++ != '"')
        return NULL;
    while (at && at < end && *at != '"') {
        unsigned char c = *at;
        if (c < 0x20)
            return NULL;
        if (c >= 0x80) {
            at = skip_character(at, end);
        } else if (c != '\\') {
            at++;
        } else if (end - at >= 2 && at[1] != 'u') {
            if (!at[1] || !strchr("\"\\/bfnrt", at[1]))
                return NULL;
            at += 2;
        } else {
            int unit = read_unit(at, end);
            if (unit < 0 || (unit >= 0xDC00 && unit <= 0xDFFF))
                return NULL;
            at += 6;
            if (unit >= 0xD800 && unit <= 0xDBFF) { /* its other half must follow */
                unit = read_unit(at, end);
                if (unit < 0xDC00 || unit > 0xDFFF)
                    return NULL;
                at += 6;
            }
        }
    }
    return at && at < end ? at + 1 : NULL;
}

static const char *skip_digits(const char *at, const char *end)
{
    const char *start = at;
    while (at < end && *at >= '0' && *at <= '9')
        at++;
    return at > start ? at : NULL;
}

static const char *skip_number(const char *at, const char *end)
{
    if (at < end && *at == '-')
        at++;
    if (at < end && *at == '0')
        at++;
    else if (!(at = skip_digits(at, end)))
        return NULL;
    if (at < end && *at == '.' && !(at = skip_digits(at + 1, end)))
        return NULL;
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '+' || *at == '-'))
            at++;
        at = skip_digits(at, end);
    }
    return at;
}

static const char *skip_word(const char *at, const char *end, const char *word)
{
    size_t size = strlen(word);
    return (size_t)(end - at) >= size && !memcmp(at, word, size) ? at + size : NULL;
}

static const char *skip_value(const char *at, const char *end, int depth)
{
    if (at == end || depth > MAX_DEPTH)
        return NULL;
    switch (*at) {
    case '"':
        return skip_string(at, end);
    case 't':
        return skip_word(at, end, "true");
    case 'f':
        return skip_word(at, end, "false");
    case 'n':
        return skip_word(at, end, "null");
    case '{':
    case '[': {
        char close = *at == '{' ? '}' : ']';
        at = skip_space(at + 1, end);
        if (at < end && *at == close)
            return at + 1;
        while (at < end) {
            if (close == '}') {
                if (!(at = skip_string(at, end)))
                    return NULL;
                at = skip_space(at, end);
                if (at == end || *at != ':')
                    return NULL;
                at = skip_space(at + 1, end);
            }
            if (!(at = skip_value(at, end, depth + 1)))
                return NULL;
            at = skip_space(at, end);
            if (at < end && *at == close)
                return at + 1;
            if (at == end || *at != ',')
                return NULL;
            at = skip_space(at + 1, end);
        }
        return NULL;
    }
    default:
        return skip_number(at, end);
    }
}

static bool is_object(Span object)
{
    return object.start && *object.start == '{';
}

/* Whether the checked string `text` says `word`, made of letters, digits and _, in whatever way it is escaped. */
static bool says(Span text, const char *word)
{
    const char *at = text.start + 1, *end = text.end - 1;
    for (; at < end && *word; word++) {
        int unit = read_unit(at, end); /* the short escapes stand for no letter or digit */
        if ((unit < 0 ? *at : unit) != *word)
            return false;
        at += unit < 0 ? 1 : 6;
    }
    return at == end && !*word;
}

/* The value of `key` in a checked object; of a key given twice, the last. */
static Span member(Span object, const char *key)
{
    Span found = {NULL, NULL};
    if (!is_object(object))
        return found;
    const char *at = skip_space(object.start + 1, object.end);
    while (*at != '}') {
        Span name = {at, skip_string(at, object.end)};
        at = skip_space(skip_space(name.end, object.end) + 1, object.end);
        Span value = {at, skip_value(at, object.end, 0)};
        if (says(name, key))
            found = value;
        at = skip_space(value.end, object.end);
        if (*at == ',')
            at = skip_space(at + 1, object.end);
    }
    return found;
}

static bool read_number(Span value, double *number)
{
    char text[64];
    size_t size = value.end - value.start;
    if (!value.start || size >= sizeof text || !strchr("-0123456789", *value.start))
        return false;
    memcpy(text, value.start, size);
    text[size] = 0;
    *number = strtod(text, NULL);
    return true;
}

/* An integer from 0 to 2^53−1: all of them are doubles. */
static bool read_integer(Span value, uint64_t *integer)
{
    double number;
    if (!read_number(value, &number) || skip_digits(value.start, value.end) != value.end || number > MAX_ID)
        return false;
    *integer = (uint64_t)number;
    return true;
}

/* Frames out. */

static void write_frame(const char *head, size_t head_size, const char *tail, size_t tail_size, const char *end)
{
    size_t size = head_size + tail_size + strlen(end);
    unsigned char length[4] = {size >> 24, size >> 16, size >> 8, size};
    struct iovec parts[] = {
        {length, 4}, {(void *)head, head_size}, {(void *)tail, tail_size}, {(void *)end, strlen(end)}};
    for (int first = 0; first < 4;) {
        ssize_t written = writev(sink, parts + first, 4 - first);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            exit(0); /* nobody listens any more */
        while (first < 4 && (size_t)written >= parts[first].iov_len)
            written -= parts[first++].iov_len;
        if (first < 4) {
            parts[first].iov_base = (char *)parts[first].iov_base + written;
            parts[first].iov_len -= written;
        }
    }
}

/* `format` makes a whole message, in which whatever comes from outside is JSON already. */
__attribute__((format(printf, 1, 2))) static void send_message(const char *format, ...)
{
    char *text;
    va_list values;
    va_start(values, format);
    int size = vasprintf(&text, format, values);
    va_end(values);
    if (size < 0)
        abort();
    write_frame(text, size, "", 0, "");
    free(text);
}

static void fail(uint64_t id, const char *error)
{
    send_message("{\"id\":%llu,\"success\":false,\"error\":\"%s\"}", (unsigned long long)id, error);
}

static void unreadable(const char *error)
{
    send_message("{\"id\":null,\"success\":false,\"error\":\"%s\"}", error);
}

static void give_back(uint64_t id, Span result)
{
    char head[64];
    int size = snprintf(head, sizeof head, "{\"id\":%llu,\"success\":true,\"result\":", (unsigned long long)id);
    if (size + (result.end - result.start) + 1 > (ptrdiff_t)FRAME_LIMIT)
        fail(id, "TooLarge: the result is over the limit of a frame");
    else
        write_frame(head, size, result.start, result.end - result.start, "}");
}

static void give_number(uint64_t id, uint64_t number)
{
    send_message("{\"id\":%llu,\"success\":true,\"result\":%llu}", (unsigned long long)id, (unsigned long long)number);
}

/* What runs, and what was cancelled before it came. */

typedef struct {
    uint64_t id; /* 0: a free place */
    double due, seconds;
} Sleep;

static Sleep sleeping[CONCURRENCY];
static uint64_t cancelled[REMEMBERED];
static unsigned cancels;
static bool ending;

static void cancel(uint64_t id)
{
    for (int n = 0; n < CONCURRENCY; n++)
        if (sleeping[n].id == id && id) {
            sleeping[n].id = 0;
            fail(id, "cancelled");
            return;
        }
    cancelled[cancels++ % REMEMBERED] = id;
}

static bool was_cancelled(uint64_t id)
{
    for (int n = 0; n < REMEMBERED; n++)
        if (cancelled[n] == id && id) {
            cancelled[n] = 0;
            return true;
        }
    return false;
}

/* Answer the sleeps that are over; milliseconds until the next is, or −1 if there is none. */
static int wake(void)
{
    double next = -1;
    for (int n = 0; n < CONCURRENCY; n++) {
        Sleep *one = &sleeping[n];
        if (one->id && one->due <= now()) {
            send_message("{\"id\":%llu,\"success\":true,\"result\":%.17g}", (unsigned long long)one->id, one->seconds);
            one->id = 0;
        } else if (one->id && (next < 0 || one->due < next)) {
            next = one->due;
        }
    }
    if (next < 0 && ending)
        exit(0);
    double wait = (next - now()) * 1000 + 1;
    return next < 0 ? -1 : wait < 0 ? 0 : wait > 60000 ? 60000 : (int)wait;
}

/* One request. */

static void serve(Span payload)
{
    uint64_t id, number;
    double seconds;
    const char *end = skip_value(payload.start, payload.end, 1);
    if (!end || skip_space(end, payload.end) != payload.end || !is_object(payload)) {
        unreadable("cannot read the frame: it is no JSON object");
        return;
    }
    Span command = member(payload, "command"), args = member(payload, "args");
    if (!read_integer(member(payload, "id"), &id) || !command.start || *command.start != '"') {
        unreadable("cannot read the frame: a request needs an id and a command");
        return;
    }
    if (!args.start || *args.start == 'n')
        args = (Span){"{}", "{}" + 2};
    if (!is_object(args)) {
        fail(id, "args must be an object");
    } else if (says(command, "cancel")) {
        if (read_integer(member(args, "id"), &number))
            cancel(number); /* without a reply of its own */
    } else if (says(command, "shutdown")) {
        send_message("{\"id\":%llu,\"success\":true,\"result\":{\"status\":\"ended\"}}", (unsigned long long)id);
        ending = true;
    } else if (says(command, "ping")) {
        send_message("{\"id\":%llu,\"success\":true,\"result\":{\"status\":\"ok\",\"capabilities\":{\"protocol\":1,"
                     "\"concurrency\":%d,\"cancel\":true,\"stream\":true,\"shutdown\":true,"
                     "\"commands\":[\"echo\",\"sleep\",\"count\",\"log\"]}}}", (unsigned long long)id, CONCURRENCY);
    } else if (was_cancelled(id)) {
        fail(id, "cancelled");
    } else if (says(command, "echo")) {
        give_back(id, args);
    } else if (says(command, "sleep")) {
        int place = 0;
        while (place < CONCURRENCY && sleeping[place].id)
            place++;
        if (!read_number(member(args, "seconds"), &seconds) || !(seconds >= 0 && seconds < 1e9))
            fail(id, "seconds must be a number from 0");
        else if (place == CONCURRENCY)
            fail(id, "more requests at once than were claimed");
        else
            sleeping[place] = (Sleep){id, now() + seconds, seconds};
    } else if (says(command, "count")) {
        if (!read_integer(member(args, "to"), &number)) {
            fail(id, "to must be an integer from 0");
            return;
        }
        for (uint64_t seq = 0; seq < number; seq++)
            send_message("{\"id\":%llu,\"event\":\"chunk\",\"seq\":%llu,\"data\":%llu}", (unsigned long long)id,
                         (unsigned long long)seq, (unsigned long long)seq);
        give_number(id, number);
    } else if (says(command, "log")) {
        if (!read_integer(member(args, "bytes"), &number)) {
            fail(id, "bytes must be an integer from 0");
            return;
        }
        for (uint64_t n = 1; n <= number; n++)
            putchar(n % 1024 && n < number ? 'x' : '\n'); /* on stderr: see main */
        fflush(stdout);
        give_number(id, number);
    } else { /* what stands between the quotes of a JSON string can stand in another one */
        int size = (int)(command.end - command.start - 2);
        send_message("{\"id\":%llu,\"success\":false,"
                     "\"error\":\"unknown command: %.*s; there are: echo, sleep, count, log\"}",
                     (unsigned long long)id, size, command.start + 1);
    }
}

int main(void)
{
    /* Frames own standard input and output. What else is printed goes to stderr, and no child inherits the frames. */
    source = fcntl(0, F_DUPFD_CLOEXEC, 3);
    sink = fcntl(1, F_DUPFD_CLOEXEC, 3);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (source < 0 || sink < 0 || null < 0 || dup2(null, 0) < 0 || dup2(2, 1) < 0)
        return 1;
    signal(SIGPIPE, SIG_IGN);

    unsigned char header[4];
    char *body = NULL; /* of the frame whose length is read */
    size_t length = 4, have = 0;
    for (;;) {
        struct pollfd readable = {source, POLLIN, 0};
        if (poll(&readable, 1, wake()) <= 0)
            continue;
        ssize_t size = read(source, (body ? body : (char *)header) + have, length - have);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return 0; /* whoever asked is gone */
        have += size;
        if (have < length)
            continue;
        have = 0;
        if (body) {
            serve((Span){body, body + length});
            free(body);
            body = NULL;
            length = 4;
        } else {
            length = (uint32_t)header[0] << 24 | header[1] << 16 | header[2] << 8 | header[3];
            if (length == 0 || length > FRAME_LIMIT) {
                unreadable("a length of 0 or over the limit: standard input holds no frames");
                return 1;
            }
            body = allocate(length);
        }
    }
}
