#!/usr/bin/perl
# A client of guestd with nothing but Perl's own core, written from docs/protocol.md alone.
# perl check.pl SCENARIO PATH: runs one scenario over the Unix socket at PATH; ends with 0 when it went as the
# protocol says. Without arguments: lists the scenarios.

use strict;
use warnings;
use IO::Socket::UNIX;

use constant {
    HELLO => 0x01, GOAWAY => 0x02, PING => 0x03, PONG => 0x04,
    OPEN  => 0x10, ACCEPT => 0x11, REJECT => 0x12, DATA => 0x13, EVENT => 0x14, CREDIT => 0x15, END_ => 0x16, RESET => 0x17,
};
use constant { PREFACE => "\0guestd\x01", WINDOW => 1 << 20 };

# ---------------------------------------------------------------------------------------------- MessagePack
# Perl has one kind of scalar for numbers and text: \"…" is bytes, a plain number packs as one, the rest as text.

sub mp {
    my ($value) = @_;
    return "\xc0" if !defined $value;
    if (ref $value eq 'HASH') {
        return pack('C n', 0xde, scalar keys %$value) . join '', map { mp_text($_) . mp($value->{$_}) } sort keys %$value;
    }
    return pack('C n', 0xdc, scalar @$value) . join '', map { mp($_) } @$value if ref $value eq 'ARRAY';
    return pack('C N', 0xc6, length $$value) . $$value if ref $value eq 'SCALAR';
    return ($value->[0] ? "\xc3" : "\xc2") if ref $value eq 'Flag';
    return pack('C Q>', 0xcf, $value) if $value =~ /^\d{1,18}$/;
    return pack('C d>', 0xcb, $value) if $value =~ /^\d+\.\d+$/;
    return mp_text($value);
}

sub mp_text { return pack('C N', 0xdb, length $_[0]) . $_[0] }
sub true { return bless [1], 'Flag' }

sub unmp {
    my ($bytes) = @_;
    my $at = 0;
    my $value = unmp_at(\$bytes, \$at);
    die "there is more behind the value\n" if $at != length $bytes;
    return $value;
}

sub unmp_at {
    my ($bytes, $at) = @_;
    my $take = sub { my $part = substr $$bytes, $$at, $_[0]; $$at += $_[0]; return $part };
    my $number = sub { return unpack $_[1], $take->($_[0]) };
    my $list = sub { return [map { unmp_at($bytes, $at) } 1 .. $_[0]] };
    my $map = sub { my %found; for (1 .. $_[0]) { my $name = unmp_at($bytes, $at); $found{$name} = unmp_at($bytes, $at) } return \%found };
    my $type = $number->(1, 'C');
    return $type if $type < 0x80;
    return $map->($type & 15) if $type < 0x90;
    return $list->($type & 15) if $type < 0xa0;
    return $take->($type & 31) if $type < 0xc0;
    return $type - 256 if $type >= 0xe0;
    return undef if $type == 0xc0;
    return $type - 0xc2 if $type == 0xc2 || $type == 0xc3;
    my %sized = (0xc4 => [1, 'C'], 0xc5 => [2, 'n'], 0xc6 => [4, 'N'], 0xd9 => [1, 'C'], 0xda => [2, 'n'], 0xdb => [4, 'N']);
    return $take->($number->(@{$sized{$type}})) if $sized{$type};
    my %plain = (
        0xca => [4, 'f>'], 0xcb => [8, 'd>'], 0xcc => [1, 'C'], 0xcd => [2, 'n'], 0xce => [4, 'N'], 0xcf => [8, 'Q>'],
        0xd0 => [1, 'c'], 0xd1 => [2, 's>'], 0xd2 => [4, 'l>'], 0xd3 => [8, 'q>'],
    );
    return $number->(@{$plain{$type}}) if $plain{$type};
    return $list->($number->(2, 'n')) if $type == 0xdc;
    return $list->($number->(4, 'N')) if $type == 0xdd;
    return $map->($number->(2, 'n')) if $type == 0xde;
    return $map->($number->(4, 'N')) if $type == 0xdf;
    die sprintf "0x%x begins no value of this protocol\n", $type;
}

# --------------------------------------------------------------------------------------------------- frames

sub connect_to {
    my ($path, $window) = @_;
    my $socket = IO::Socket::UNIX->new(Peer => $path) or die "cannot reach $path: $!\n";
    binmode $socket;
    my $guest = { socket => $socket, window => $window // WINDOW, next => 1, greeted => 0 };
    # One write, without waiting: preface and hello; whatever is asked follows.
    print {$socket} PREFACE . frame(HELLO, 0, mp({ version => 1, agent => 'perl-example', limits => { window => $guest->{window} } }));
    $socket->flush;
    return $guest;
}

sub frame {
    my ($kind, $channel, $payload) = @_;
    return pack('V C V', 5 + length $payload, $kind, $channel) . $payload;
}

sub tell_guest {
    my ($guest, @frame) = @_;
    print { $guest->{socket} } frame(@frame);
    $guest->{socket}->flush;
    return;
}

sub take {
    my ($guest, $size) = @_;
    my $found = '';
    while (length $found < $size) {
        my $got = read $guest->{socket}, $found, $size - length $found, length $found;
        die "the connection ended\n" if !$got;
    }
    return $found;
}

sub next_frame {
    my ($guest) = @_;
    if (!$guest->{greeted}++) {
        die "no preface\n" if take($guest, length PREFACE) ne PREFACE;
    }
    my ($kind, $channel, $payload) = unpack 'C V a*', take($guest, unpack 'V', take($guest, 4));
    return ($kind, $channel, $payload);
}

# One request, to its end: {accept, end, reject, reset, stdout, stderr, gaps}. `stop` may give up in the middle.
sub request {
    my ($guest, $fields, %how) = @_;
    my $number = $guest->{next};
    my %seen = (stdout => '', stderr => '', gaps => []);
    my $window = $fields->{window} // $guest->{window};
    my ($owed, $sent) = (0, 0);
    my %at;
    tell_guest($guest, OPEN, $number, mp($fields));
    if (defined $how{input}) {
        tell_guest($guest, DATA, $number, pack('C Q<', 0, $sent) . $how{input});
        $sent += length $how{input};
        tell_guest($guest, EVENT, $number, mp({ event => 'eof', offset => $sent }));
    }
    while (1) {
        my ($kind, $channel, $payload) = next_frame($guest);
        if ($kind == HELLO) { $guest->{hello} = unmp($payload) }
        elsif ($kind == GOAWAY) { $seen{goaway} = unmp($payload); return \%seen }
        elsif ($kind == PING) { tell_guest($guest, PONG, 0, $payload) }
        elsif ($channel != $number) { }
        elsif ($kind == ACCEPT) { $seen{accept} = unmp($payload) }
        elsif ($kind == REJECT) { $seen{reject} = unmp($payload); last }
        elsif ($kind == END_) { $seen{end} = unmp($payload); last }
        elsif ($kind == RESET) { tell_guest($guest, RESET, $number, mp({})); $seen{reset} = unmp($payload); last }
        elsif ($kind == EVENT) {
            my $event = unmp($payload);
            if ($event->{event} eq 'gap') {
                push @{ $seen{gaps} }, $event;
                $at{ $event->{stream} } = $event->{to};
            }
        }
        elsif ($kind == DATA) {
            my ($stream, $offset, $data) = unpack 'C Q< a*', $payload;
            die "stream $stream went from $at{$stream} to $offset without a gap\n" if defined $at{$stream} && $at{$stream} != $offset;
            $at{$stream} = $offset + length $data;
            $seen{ $stream == 1 ? 'stdout' : 'stderr' } .= $data;
            $owed += length $data;
            return \%seen if $how{stop} && $how{stop}->(\%seen);
            if (!$how{stop} && $owed * 2 >= $window) {
                tell_guest($guest, CREDIT, $number, mp({ bytes => $owed }));
                $owed = 0;
            }
        }
    }
    return \%seen;
}

# ------------------------------------------------------------------------------------------------ scenarios

sub is {
    my ($found, $expected, $what) = @_;
    ($found, $expected) = map { defined $_ ? $_ : '(nothing)' } $found, $expected;
    die "$what: found '" . substr($found, 0, 200) . "', expected '" . substr($expected, 0, 200) . "'\n" if $found ne $expected;
    return;
}

sub numbers {
    my ($size) = @_;
    my $text = '';
    for (my $number = 1; length $text < $size; $number++) { $text .= "$number\n" }
    return substr $text, 0, $size;
}

my $all = join '', map { chr } 0 .. 255;
my %scenarios = (
    printf => sub {
        my ($guest) = @_;
        my $seen = request($guest, { op => 'exec', argv => ['printf', '%s', 'hello'] });
        is($seen->{stdout}, 'hello', 'stdout');
        is($seen->{end}{outcome}, 'exited', 'outcome');
        is($seen->{end}{status}, 0, 'status');
        is($guest->{hello}{version}, 1, 'version');
    },
    bytes => sub {
        my ($guest) = @_;
        my $seen = request($guest, { op => 'exec', shell => 'tee /dev/stderr', stdin => 'stream' }, input => $all);
        is($seen->{stdout}, $all, 'stdout');
        is($seen->{stderr}, $all, 'stderr');
        is($seen->{end}{input}{bytes}, 256, 'input');
        my $argument = substr $all, 1;
        is(request($guest, { op => 'exec', argv => [\'printf', \'%s', \$argument] })->{stdout}, $argument, 'an argument');
    },
    statuses => sub {
        my ($guest) = @_;
        for (
            [{ argv => ['true'] }, 'exited', 0], [{ shell => 'exit 3' }, 'exited', 3],
            [{ shell => 'kill -9 $$' }, 'signaled', 137], [{ argv => ['/nowhere/at/all'] }, 'not_started', 127],
            [{ argv => ['/etc/passwd'] }, 'not_started', 126], [{ argv => ['true'], user => 'nobody-at-all' }, 'not_started', 125],
            [{ argv => ['sleep', \'1000'], timeout => '0.2' }, 'timed_out', 124],
        ) {
            my ($fields, $outcome, $status) = @$_;
            my $end = request($guest, { op => 'exec', %$fields })->{end};
            is($end->{outcome}, $outcome, "outcome for $status");
            is($end->{status}, $status, 'status');
        }
    },
    resume => sub {
        my ($guest, $path) = @_;
        my %same = (op => 'exec', id => "perl-resume-$$", shell => 'seq 1 1000000 | head -c 300000; exit 7');
        my $small = connect_to($path, 50000);
        my $before = request($small, \%same, stop => sub { length $_[0]{stdout} == 50000 });
        close $small->{socket};
        my $after = request($guest, { %same, from => { stdout => 50000, stderr => 0 } });
        is($after->{accept}{created}, 0, 'created');
        is($before->{stdout} . $after->{stdout}, numbers(300000), 'the two parts together');
        is($after->{end}{status}, 7, 'status');
    },
    gap => sub {
        my ($guest) = @_;
        my $id = "perl-gap-$$";
        request($guest, { op => 'exec', id => $id, shell => 'seq 1 1000000 | head -c 100000', tape => 4096, detach => true() });
        is(request($guest, { op => 'wait', id => $id })->{end}{status}, 0, 'status');
        my $seen = request($guest, { op => 'attach', id => $id, from => { stdout => 1000 } });
        is(scalar @{ $seen->{gaps} }, 1, 'gaps');
        is("@{$seen->{gaps}[0]}{qw(stream from to)}", '1 1000 95904', 'the gap');
        is($seen->{stdout}, substr(numbers(100000), 95904), 'what is kept');
        is($seen->{end}{gaps}{stdout}, 94904, 'lost');
    },
    reject => sub {
        my ($guest) = @_;
        my $reject = request($guest, { op => 'exec', argv => 5 })->{reject};
        is("@{$reject}{qw(code field)}", 'bad_request argv', 'reject');
        is(request($guest, { op => 'nothing' })->{reject}{code}, 'unsupported', 'an unknown operation');
        is(request($guest, { op => 'wait', id => 'perl-never-was' })->{reject}{code}, 'not_found', 'an unknown job');
        is(request($guest, { op => 'exec', argv => ['true'] })->{end}{status}, 0, 'afterwards');
    },
    malformed => sub {
        my ($guest, $path) = @_;
        tell_guest($guest, 0x09, 0, '');
        is(request($guest, { op => 'ps' })->{goaway}{code}, 'protocol', 'an unknown kind');
        is(request(connect_to($path), { op => 'ps' })->{end} ? 1 : 0, 1, 'another connection');
    },
);

if (!@ARGV) { print "$_\n" for sort keys %scenarios; exit 0 }
my ($name, $path) = @ARGV;
# A server that has said GOAWAY is gone in the middle of what is written to it; why stands in what is still to be read.
$SIG{PIPE} = 'IGNORE';
$SIG{ALRM} = sub { die "nothing came for 60 s\n" };
alarm 60;
$scenarios{$name}->(connect_to($path), $path);
