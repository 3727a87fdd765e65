#!/bin/sh
# What the image starts, by its first argument:
#   curate, report, …       aligngpt-curate
#   ray …                   a node of Ray, as in: ray start --head --block
#   --id=… --worker_pool    a worker or a pool of workers of Beam, as its runners start them
#   sh, bash, python        itself
case "${1:-}" in
  --id=* | --worker_pool*) exec /opt/apache/beam/boot "$@" ;;
  ray | sh | bash | python | /*) exec "$@" ;;
  *) exec aligngpt-curate "$@" ;;
esac
