# For every shell: puts back what /etc/profile has dropped from the container's PATH, which is given. The container's
# order comes first, then what the profile added. A profile that dropped nothing is right as it is.
__guestd_keep_path() {
    local left entry dropped added
    dropped= added=
    left="$1:"
    while [ -n "$left" ]; do
        entry="${left%%:*}"
        left="${left#*:}"
        case ":$PATH:" in
            *":$entry:"*) ;;
            *) dropped=yes ;;
        esac
    done
    [ -n "$dropped" ] || return 0
    left="$PATH:"
    while [ -n "$left" ]; do
        entry="${left%%:*}"
        left="${left#*:}"
        case ":$1:" in
            *":$entry:"*) ;;
            *) added="$added:$entry" ;;
        esac
    done
    PATH="$1$added"
}
