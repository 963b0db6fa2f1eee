#!/bin/sh
# Writes the password of both servers into the secret's volume: REDIS_PASSWORD where that is set, else a random one, once.
# The volume is mounted into the containers of this stack only; on the host its folder is open to root alone, so the files in it may be
# readable for all: the servers run as another user than the workers.
set -eu
umask 022
folder=/var/lib/dc-secret
password_file=$folder/redis-password

if [ -n "${REDIS_PASSWORD:-}" ]; then
    case $REDIS_PASSWORD in
        *[!A-Za-z0-9_.~-]*)
            echo "REDIS_PASSWORD may have only A-Z a-z 0-9 _ . ~ -, because it becomes part of a URL; openssl rand -hex 24 makes a good one" >&2
            exit 1 ;;
    esac
    password=$REDIS_PASSWORD
elif [ -s "$password_file" ]; then
    password=$(cat "$password_file")
else
    password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
fi

put() { # put FILE: standard input becomes the file at once, so that nobody reads half of it
    cat > "$1.new"
    mv "$1.new" "$1"
}
printf '%s' "$password" | put "$password_file"
printf 'requirepass %s\n' "$password" | put "$folder/valkey.conf"
