# Stands in for python:3.11-slim-bookworm: Debian's own Python 3.11, which finds packages in /wheels alone.
FROM saucer-check-debian
RUN rm -f /usr/lib/python3.11/EXTERNALLY-MANAGED && ln -sf python3 /usr/bin/python \
    && printf '[global]\nno-index = true\nfind-links = /wheels\nbreak-system-packages = true\n' >/etc/pip.conf
COPY wheels /wheels
