#!/bin/sh
# Gives a command of ours the URLs of this stack's two servers.  The password comes from the secret's volume, so that no image, no file
# of the project and no `docker inspect` holds it.  On other hosts DC_REDIS_URL is set and nothing is read.
set -eu
password_file=/var/lib/dc-secret/redis-password

if [ -z "${DC_REDIS_URL:-}" ] && [ -r "$password_file" ]; then
    password=$(cat "$password_file")
    export DC_REDIS_URL="redis://:$password@redis-state:6379/0"
    export DC_BLOB_URL="${DC_BLOB_URL:-redis://:$password@redis-blobs:6379/0}"
fi
exec "$@"
