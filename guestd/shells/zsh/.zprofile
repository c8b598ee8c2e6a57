# Of a login shell, the first of a user's files behind /etc/zprofile. See .zshenv.
{ __guestd_back_for_zprofile } >/dev/null 2>&1
if [[ -r ${ZDOTDIR:-${HOME-}}/.zprofile ]]; then . "${ZDOTDIR:-${HOME-}}/.zprofile"; fi
