/* An echo server, as bare as can be: what a connection sends comes back to it.

       echo PORT

   The limit that echo servers are measured against: plain epoll, two system calls a message. While
   the kernel doesn't take all of an echo, its client isn't read from. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 65536, READ = 120 * 1024, EVENTS = 256 };

static struct {
    char *data;  /* to be sent back, or NULL */
    size_t start, size;
} backlog[MOST];  /* by descriptor */
static int poller;

static void wait_for(int fd, int events)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event);
}

static void drop(int fd)
{
    free(backlog[fd].data);
    backlog[fd].data = NULL;
    close(fd);
}

static void flush(int fd)
{
    ssize_t sent = send(fd, backlog[fd].data + backlog[fd].start, backlog[fd].size, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN)
            drop(fd);
        return;
    }
    backlog[fd].start += sent;
    backlog[fd].size -= sent;
    if (!backlog[fd].size) {
        free(backlog[fd].data);
        backlog[fd].data = NULL;
        wait_for(fd, EPOLLIN);
    }
}

static void echo(int fd)
{
    static char data[READ];
    ssize_t got = recv(fd, data, READ, 0);
    if (got <= 0) {
        if (!got || errno != EAGAIN)
            drop(fd);
        return;
    }
    ssize_t sent = send(fd, data, got, MSG_NOSIGNAL);
    if (sent == got)
        return;
    if (sent < 0 && errno != EAGAIN) {
        drop(fd);
        return;
    }
    sent = sent < 0 ? 0 : sent;
    backlog[fd].start = 0;
    backlog[fd].size = got - sent;
    backlog[fd].data = malloc(backlog[fd].size);
    memcpy(backlog[fd].data, data + sent, backlog[fd].size);
    wait_for(fd, EPOLLOUT);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[argc - 1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024))
        return 1;
    poller = epoll_create1(0);
    event.data.fd = listener;
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                (backlog[fd].data ? flush : echo)(fd);
                continue;
            }
            fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (fd < 0 || fd >= MOST)
                continue;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            event.data.fd = fd;
            epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
