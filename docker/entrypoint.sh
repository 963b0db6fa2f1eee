#!/bin/sh
# Gives a command of ours the URLs of this stack's two servers, and Flower's password.  They come from the secret's volume, so that no
# image, no file of the project and no `docker inspect` holds them.  On other hosts DC_REDIS_URL is set and nothing is read.
set -eu
folder=/var/lib/dc-secret

if [ -z "${DC_REDIS_URL:-}" ] && [ -r "$folder/redis-password" ]; then
    password=$(cat "$folder/redis-password")
    export DC_REDIS_URL="redis://:$password@redis-state:6379/0"
    export DC_BLOB_URL="${DC_BLOB_URL:-redis://:$password@redis-blobs:6379/0}"
    export DC_ALLOW_PLAINTEXT=1 # nobody but this stack's containers is in its network
fi
if [ -z "${DC_FLOWER_BASIC_AUTH:-}" ] && [ -r "$folder/flower-auth" ]; then
    DC_FLOWER_BASIC_AUTH=$(cat "$folder/flower-auth")
    export DC_FLOWER_BASIC_AUTH
fi
exec "$@"
