/* A relay of lines, as bare as can be: what one connection says goes to all others.

       relay PORT

   The limit that rooms are measured against: plain epoll, one send for each listener and each
   read. There is nothing to guard anybody: one who doesn't read stops all the others. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 65536, READ = 256 * 1024, EVENTS = 256 };

static int everyone[MOST], count;  /* the descriptors of all members */
static int place[MOST];            /* by descriptor: where in `everyone` it is */
static char *rest[MOST];           /* by descriptor: the beginning of a line, if any */
static size_t rest_size[MOST];

static void say(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent >= 0) {
            data += sent;
            size -= sent;
        } else if (errno == EAGAIN) {
            poll(&(struct pollfd){.fd = fd, .events = POLLOUT}, 1, -1);
        } else {
            return;  /* it is gone, and will be removed when it is read from */
        }
    }
}

static void drop(int fd)
{
    everyone[place[fd]] = everyone[--count];
    place[everyone[count]] = place[fd];
    free(rest[fd]);
    rest[fd] = NULL;
    rest_size[fd] = 0;
    close(fd);
}

static void hear(int fd)
{
    static char data[READ];
    size_t before = rest_size[fd];
    if (before)
        memcpy(data, rest[fd], before);
    ssize_t got = recv(fd, data + before, READ - before, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {  /* also where a line has filled all of `data` */
        drop(fd);
        return;
    }
    size_t size = before + got;
    char *newline = memrchr(data, '\n', size);
    size_t whole = newline ? newline + 1 - data : 0;
    for (int i = 0; i < count && whole; i++)
        if (everyone[i] != fd)
            say(everyone[i], data, whole);
    rest_size[fd] = size - whole;
    rest[fd] = realloc(rest[fd], rest_size[fd] + 1);
    memcpy(rest[fd], data + whole, rest_size[fd]);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[argc - 1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
    int listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0), on = 1;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
        return 1;
    event.data.fd = listener;
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd != listener) {
                hear(events[i].data.fd);
                continue;
            }
            int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (fd < 0 || fd >= MOST)
                continue;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            place[fd] = count;
            everyone[count++] = fd;
            event.data.fd = fd;
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
