#!/usr/bin/env bash
# Creates or updates the Cloud Scheduler job that runs the daily maintenance of the streak service.
#
# No OIDC token: Cloud Scheduler would send it as `Authorization`, where the service expects its own admin's token.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: cloud_scheduler.sh [--help]

Creates or updates the job streak-maintenance-daily: at 4:05 UTC each day, POST /api/admin/maintenance of the service.

environment:
  PROJECT             the Google Cloud project
  REGION              the region of the job, such as europe-west1
  STREAK_URL          where the service is, such as https://streak-abc123-ew.a.run.app
  STREAK_ADMIN_TOKEN  an admin's token, as made by: python -m examples.streak.auth scheduler --admin

The token reaches gcloud by a file that only you can read and that is deleted, so that it is in no list of processes.
Whoever may see the job in the project can read it there. A new STREAK_SECRET needs a new token: run this again.

A job that fails is tried again, up to five times. That is harmless: a run that is completed does nothing, one that is
under way answers 409, one that was ended half-way goes on where it was.
TEXT
}

fail() {
  echo "cloud_scheduler.sh: $1" >&2
  exit 2
}

case "${1:-}" in
  '') ;;
  -h | --help) usage && exit ;;
  *) fail "$1 is no option: see --help" ;;
esac
for name in PROJECT REGION STREAK_URL STREAK_ADMIN_TOKEN; do
  [ -n "${!name:-}" ] || fail "$name is not set: see --help"
done
[[ $STREAK_URL =~ ^https://[A-Za-z0-9.:-]+/?$ ]] || fail 'STREAK_URL is no address of this kind: use https://host'
# It is written into YAML below, and a user's token would be refused each day at 4:05.
[[ $STREAK_ADMIN_TOKEN =~ ^admin\.[a-z0-9_-]+\.[0-9a-f.]+$ ]] ||
  fail "STREAK_ADMIN_TOKEN is no admin's token: make one by python -m examples.streak.auth scheduler --admin"
command -v gcloud >/dev/null || fail 'gcloud is not installed: https://cloud.google.com/sdk/docs/install'

# gcloud writes what it is told, and what it answers, into files of its own, unless it is told not to.
export CLOUDSDK_CORE_DISABLE_FILE_LOGGING=1
job=streak-maintenance-daily
where=(--project "$PROJECT" --location "$REGION")
if gcloud scheduler jobs describe "$job" "${where[@]}" >/dev/null 2>&1; then
  verb=update headers=--update-headers
else
  verb=create headers=--headers
fi

umask 077
flags=$(mktemp)
trap 'rm -f "$flags"' EXIT
# printf is part of the shell: no process has the token among its arguments.
printf '%s:\n  Authorization: "Bearer %s"\n' "$headers" "$STREAK_ADMIN_TOKEN" >"$flags"

# The first new try is 60 s after a failure: a lease whose holder died has run out by then. What is shown of the job
# leaves its headers out.
gcloud scheduler jobs "$verb" http "$job" "${where[@]}" \
  --description='Daily maintenance of the streak service' \
  --schedule='5 4 * * *' \
  --time-zone=Etc/UTC \
  --uri="${STREAK_URL%/}/api/admin/maintenance" \
  --http-method=POST \
  --attempt-deadline=30m \
  --max-retry-attempts=5 \
  --min-backoff=60s \
  --max-backoff=10m \
  --max-doublings=3 \
  --format='value(name, schedule, state)' \
  --flags-file="$flags"
