#!/usr/bin/env bash
# The requests of the REST interface in the order in which a client makes them, each
# answer looked at. It takes the newest completed backup that can be restored.
set -euo pipefail

usage() {
    cat <<'END'
Usage: tests/contract.sh URL USER PASSWORD-FILE [CURL-OPTION…]

Example: tests/contract.sh http://127.0.0.1:8082 admin ./password
         tests/contract.sh https://backup:8082 anna ./password --cacert ca.pem
END
}

if (($# < 3)); then
    usage >&2
    exit 2
fi
base=${1%/} user=$2 password_file=$3
shift 3
options=("$@")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    printf 'contract: %s\n' "$*" >&2
    exit 1
}

token=''
# ask METHOD PATH EXPECTED-STATUS [JSON]: the body is in $work/body afterwards. The token
# goes through a file: every user of the host can read arguments.
ask() {
    local method=$1 path=$2 expected=$3 status
    local call=(curl -sS "${options[@]}" -X "$method" -o "$work/body" -D "$work/head" -w '%{http_code}')
    [[ -z $token ]] || call+=(-H @"$work/token")
    [[ $# -lt 4 ]] || { printf '%s' "$4" >"$work/request" && call+=(-H 'Content-Type: application/json' --data-binary @"$work/request"); }
    status=$("${call[@]}" "$base$path") || fail "$method $path: no answer"
    [[ $status == "$expected" ]] || fail "$method $path: $status, not $expected: $(head -c 500 "$work/body")"
    printf '%s %s: %s\n' "$method" "$path" "$status"
}

# is FILTER: a filter of jq that must be true of the last answer.
is() {
    jq -e "$1" "$work/body" >/dev/null || fail "not so: $1 of $(head -c 800 "$work/body")"
}

get() { jq -r "$1" "$work/body"; }
time_pattern='test("^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d(\\.\\d+)?(Z|[+-]\\d\\d:\\d\\d)$")'

ask GET /health 200
is '.status == "healthy" or .status == "degraded"'
ask GET /api/v1/vm-contexts 401
is '.error | type == "string"'

ask POST /api/v1/auth/login 401 '{"username":"nobody-of-this-name","password":"wrong"}'
is '.error | type == "string"'
ask POST /api/v1/auth/login 200 "$(jq -n --arg u "$user" --rawfile p "$password_file" \
    '{username: $u, password: ($p | rtrimstr("\n"))}')"
is '.token | test("^[^.]+\\.[^.]+\\.[^.]+$")'
is ".expires_at | $time_pattern"
token=$(get .token)
printf 'Authorization: Bearer %s\n' "$token" >"$work/token"

ask GET /api/v1/vm-contexts 200
is '.count == (.vm_contexts | length) and .count > 0'
is "all(.vm_contexts[]; (.context_id | type == \"string\") and (.vm_name | type == \"string\") and (.created_at | $time_pattern))"

ask GET '/api/v1/backups?status=completed' 200
is '.total_count == (.backups | length) and .total_count > 0'
is 'all(.backups[]; .status == "completed" and (.disk_count | type == "number") and (.backup_type == "full" or .backup_type == "incremental"))'
vm=$(get '.backups[-1].vm_name')
vm_in_url=$(jq -rn --arg vm "$vm" '$vm | @uri')

ask GET "/api/v1/vm-contexts/$vm_in_url/disks" 200
is '.total_disks == (.disks | length)'

ask GET "/api/v1/backups?vm_name=$vm_in_url&status=completed" 200
is "all(.backups[]; .vm_name == $(jq -n --arg vm "$vm" '$vm'))"

ask GET "/api/v1/backups/chain?vm_name=$vm_in_url" 200
is '.total_backups == (.chain | length) and (.chain_size_gb | type == "number")'
is 'all(.chain[]; (.is_restorable | type == "boolean") and (.sequence_number | type == "number"))'
backup=$(get '[.chain[] | select(.is_restorable)] | last | .backup_id')
[[ $backup != null ]] || fail "no backup of $vm can be restored"

ask GET "/api/v1/backups/$backup" 200
is '.status == "completed" and (.disks | length) > 0'
disk=$(get '[.disks[] | select(.status == "completed")][0].disk_index')

ask POST /api/v1/restore/mount 404 '{"backup_id":"backup-none-1","disk_index":0}'
ask POST /api/v1/restore/mount 404 "{\"backup_id\":\"$backup\",\"disk_index\":5000}"
is ".error == \"disk not found: backup_id=$backup, disk_index=5000\""
ask POST /api/v1/restore/mount 200 "{\"backup_id\":\"$backup\",\"disk_index\":$disk}"
is '.mount_id | test("^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")'
is '.status == "mounted" and (.backup_disk_id | type == "number") and (.mount_path | startswith("/"))'
is "(.created_at | $time_pattern) and (.expires_at | $time_pattern)"
mount=$(get .mount_id)
ask POST /api/v1/restore/mount 409 "{\"backup_id\":\"$backup\",\"disk_index\":$disk}"
is ".mount_id == \"$mount\" and (.error | contains(\"$mount\"))"

# Down to the first file, folder by folder.
folder='/' file=''
for _ in $(seq 50); do
    in_url=$(jq -rn --arg path "$folder" '$path | @uri')
    ask GET "/api/v1/restore/$mount/files?path=$in_url" 200
    is '.total_count == (.files | length) and .mount_id == "'"$mount"'"'
    is "all(.files[]; (.type == \"file\" or .type == \"directory\") and (.size | type == \"number\") and (.is_symlink | type == \"boolean\") and (.modified_time | $time_pattern))"
    is '[.files[].type] as $types | $types == ($types | sort)'
    file=$(get '[.files[] | select(.type == "file" and (.is_symlink | not))][0].path // ""')
    [[ -z $file ]] || break
    folder=$(get '[.files[] | select(.type == "directory" and .name != "lost+found")][0].path // ""')
    [[ -n $folder ]] || fail "no file was found"
done
in_url=$(jq -rn --arg path "$file" '$path | @uri')
ask GET "/api/v1/restore/$mount/file-info?path=$in_url" 200
is '.type == "file"'
size=$(get .size)
ask GET "/api/v1/restore/$mount/download?path=$in_url" 200
[[ $(stat -c %s "$work/body") == "$size" ]] || fail "$file: not of $size bytes"
grep -qi '^content-disposition: attachment; filename=' "$work/head" || fail "no Content-Disposition"
grep -qi "^content-length: $size" "$work/head" || fail "no Content-Length"
folder=${file%/*}
in_url=$(jq -rn --arg path "${folder:-/}" '$path | @uri')
ask GET "/api/v1/restore/$mount/download-directory?path=$in_url&format=zip" 200
grep -qi '^content-type: application/zip' "$work/head" || fail "not application/zip"
if command -v unzip >/dev/null; then
    unzip -tqq "$work/body" || fail "not a sound archive"
fi
ask GET "/api/v1/restore/$mount/download-directory?path=$in_url&format=tar.gz" 200
grep -qi '^content-type: application/gzip' "$work/head" || fail "not application/gzip"
tar -tzf "$work/body" >/dev/null || fail "not a sound archive"
ask GET "/api/v1/restore/$mount/files?path=%2F..%2F..%2Fetc" 400
is '.error | type == "string"'
ask GET "/api/v1/restore/$mount/files?path=%2Fno-such-folder-at-all" 404

ask GET /api/v1/restore/mounts 200
is ".count == (.mounts | length) and any(.mounts[]; .mount_id == \"$mount\" and (.last_accessed_at | $time_pattern))"
ask DELETE "/api/v1/restore/$mount" 200
is ".message == \"backup unmounted successfully\" and .mount_id == \"$mount\""
ask DELETE "/api/v1/restore/$mount" 404
ask GET "/api/v1/restore/$mount/files?path=/" 404

ask POST /api/v1/auth/logout 200
ask GET /api/v1/vm-contexts 401
echo 'all as it should be'
