#!/bin/sh
# Writes the passwords of the servers and of Flower into the secret's volume: REDIS_PASSWORD and DC_FLOWER_BASIC_AUTH where they are set,
# else random ones, once.  The volume is mounted into the containers of this stack only; on the host its folder is open to root alone, so
# the files in it may be readable for all: the servers run as another user than the workers.
set -eu
umask 022
folder=/var/lib/dc-secret

random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

put() { # put FILE: standard input becomes the file at once, so that nobody reads half of it
    cat > "$folder/$1.new"
    mv "$folder/$1.new" "$folder/$1"
}

case ${REDIS_PASSWORD:-} in
    *[!A-Za-z0-9_.~-]*)
        echo "REDIS_PASSWORD may have only A-Z a-z 0-9 _ . ~ -, because it becomes part of a URL; openssl rand -hex 24 makes a good one" >&2
        exit 1 ;;
esac
if [ -n "${REDIS_PASSWORD:-}" ]; then
    printf '%s' "$REDIS_PASSWORD" | put redis-password
elif [ ! -s "$folder/redis-password" ]; then
    random | put redis-password
fi
printf 'requirepass %s\n' "$(cat "$folder/redis-password")" | put valkey.conf

if [ -n "${DC_FLOWER_BASIC_AUTH:-}" ]; then
    printf '%s' "$DC_FLOWER_BASIC_AUTH" | put flower-auth
elif [ ! -s "$folder/flower-auth" ]; then
    printf 'flower:%s' "$(random)" | put flower-auth
fi
