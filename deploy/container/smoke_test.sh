#!/bin/sh
# Start an image as Kubernetes does, without rights and with a read-only root, with the models of a folder that
# `python -m engines push` filled, and let it classify a digit: `deploy/container/smoke_test.sh convserve:cpu FOLDER`.
set -eu

image=$1
models=$(realpath "$2")
name=convserve-smoke-test-$$
trap 'docker logs "$name" | tail -n 50; docker rm --force "$name" > /dev/null' EXIT # also if the port is taken
docker run --detach --name "$name" --publish 127.0.0.1:3000:3000 \
    --read-only --tmpfs /tmp --tmpfs /var/lib/convserve:uid=10001,gid=10001 --shm-size 256m \
    --user 10001:10001 --cap-drop ALL --security-opt no-new-privileges \
    --volume "$models:/models:ro" --env CONVSERVE_MODELS=file:///models "$image"

for _ in $(seq 60); do
    if curl --silent --fail http://127.0.0.1:3000/readyz > /dev/null; then
        break
    fi
    sleep 1
done
curl --silent --show-error --fail http://127.0.0.1:3000/readyz
answer=$(curl --silent --show-error --fail --data-binary @docs/digit.png 'http://127.0.0.1:3000/classify?model=lenet5')
echo "$answer"
echo "$answer" | grep --quiet '"model":"lenet5:mnist5k-'
docker stop --time 30 "$name" > /dev/null
test "$(docker inspect --format '{{.State.ExitCode}}' "$name")" -eq 0
