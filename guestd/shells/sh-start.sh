# How a plain sh (dash, busybox, any sh that knows ENV) becomes a login shell that keeps the container's PATH.
#
# A sh that is told to be a login shell reads /etc/profile and ~/.profile with nothing in between. So it is started as one
# that only reads ENV, which names this file, and what a login shell reads is read here.

__guestd_folder="${ENV%/*}"
if [ -n "${GUESTD_SHELL_ENV+set}" ]; then ENV="$GUESTD_SHELL_ENV"; else unset ENV; fi
unset GUESTD_SHELL_ENV

. "$__guestd_folder/path.sh"
__guestd_path="$PATH"
if [ -r /etc/profile ]; then . /etc/profile; fi
__guestd_keep_path "$__guestd_path"
unset -f __guestd_keep_path
unset __guestd_path __guestd_folder
if [ -r "${HOME-}/.profile" ]; then . "$HOME/.profile"; fi

# The user's own ENV, as the container or a profile has set it, is the last that a login shell reads. It may hold
# parameters: "$HOME/.shrc".
case "${ENV-}" in
    '' | *\"*) ;;
    *) eval "if [ -r \"$ENV\" ]; then . \"$ENV\"; fi" ;;
esac
