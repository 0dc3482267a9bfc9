package Kingtask;

# A client of kingtask: ZMQ::FFI, Data::MessagePack, and what PROTOCOL.md says.
# Text goes in and out as Perl characters, stdin and what a task printed as bytes.

use v5.20;
use warnings;
use Data::MessagePack;
use List::Util qw(min max);
use Scalar::Util qw(looks_like_number);
use Time::HiRes qw(time);
use ZMQ::FFI;
use ZMQ::FFI::Constants qw(ZMQ_DEALER ZMQ_DONTWAIT ZMQ_HEARTBEAT_IVL ZMQ_HEARTBEAT_TTL ZMQ_HEARTBEAT_TIMEOUT ZMQ_SNDHWM
    ZMQ_CURVE_SERVERKEY ZMQ_CURVE_PUBLICKEY ZMQ_CURVE_SECRETKEY);

our $VERSION = '1.0';
use constant { BATCH => 1000, MESSAGE_BYTES => 4_194_304, UNDER_WAY => 500 };

# Of a task's record, what is left out.
my %ABSENT = (
    args => [], tags => [], origin => undef, reason => '', cancelling => 0, worker => undef, attempt => 0,
    started_at => undef, finished_at => undef, stdout => '', stderr => '', stdout_size => 0, stderr_size => 0,
    dropped => 0, request_dropped => 0, attempts => [],
);

# What kind each field of a request is; Perl does not tell 5 from "5", msgpack does. All others are text.
my %NUMBER = map { $_ => 1 } qw(v rid start_at delay_s retry priority time_limit_s keep_result_s expires_at timeout_s since
    until limit);

# Keys are sent in the order of the page, so that the same request is always the same bytes.
my $rank = 1;
my %RANK = map { $_ => $rank++ } qw(v rid op task tasks id new_id name args state start_at delay_s retry queue
    since until limit cursor priority time_limit_s timeout_s stdin env keep_result_s expires_at stderr on_lost tags);

sub new {
    my ($class, %opt) = @_;
    my $brokers = $opt{brokers} // $ENV{KINGTASK_BROKER} // '127.0.0.1:9595';
    for my $key ($opt{curve} ? @{ $opt{curve} }{qw(server public secret)} : ()) {
        die "curve: expected server, public and secret, 40 characters (Z85) each\n"
            unless ($key // '') =~ m{\A[0-9a-zA-Z.:+=^!/*?&<>()\[\]\{\}@%\$#-]{40}\z};
    }
    my @brokers = map { m{://} ? $_ : "tcp://$_" } ref $brokers ? @$brokers : split /,/, $brokers;
    return bless {
        timeout  => 30,      # seconds for one call, resends included
        curve    => undef,   # keys as text of 40 characters: { server => …, public => …, secret => … }
        patience => 3,       # seconds of silence after which the next broker is asked
        %opt,
        brokers  => \@brokers,
        at       => 0,       # index of the broker in use
        rid      => 0,
        pending  => {},      # rid => request
        left     => 0,       # brokers left in a row without an answer
        context  => ZMQ::FFI->new,
    }, $class;
}

# --- the ops -------------------------------------------------------------------------------------

sub ping   { $_[0]->ask('ping') }
sub stats  { $_[0]->ask('stats') }
sub get    { my ($self, $id) = @_; _record($self->ask(get => id => $id)->{task}) }
sub cancel { my ($self, $id) = @_; $self->ask(cancel => id => $id)->{outcome} }
sub pause  { my ($self, $queue) = @_; $self->ask(pause => queue => $queue) }
sub resume { my ($self, $queue) = @_; $self->ask(resume => queue => $queue) }

sub requeue {
    my ($self, $id, $new) = @_;
    return $self->ask(requeue => id => $id, new_id => $new // uuid())->{id};
}

sub list {    # all pages
    my ($self, %fields) = @_;
    my @tasks;
    do {
        my $page = $self->ask(list => %fields);
        push @tasks, map { _record($_) } @{ $page->{tasks} };
        $fields{cursor} = $page->{cursor};
    } while defined $fields{cursor};
    return @tasks;
}

# submit('example', ['12', '45'], at => time + 60, retry => [5, 8, 9]): its id
sub submit {
    my ($self, $name, $args, %opt) = @_;
    return $self->ask(submit => task => _task(name => $name, args => $args, %opt))->{id};
}

# submit_many({name => …, args => …}, …): an outcome each, in order; only a retryable one is tried again
sub submit_many {
    my ($self, @tasks) = map { ref eq 'HASH' ? _task(%$_) : $_ } @_;
    my (@out, @rids, $size);
    my @todo = 0 .. $#tasks;
    my $end = time + $self->{timeout};
    while (@todo) {
        my @chunks;
        for my $i (@todo) {
            my $bytes = length _pack($tasks[$i]);
            push @chunks, [] and $size = 64 if !@chunks or @{ $chunks[-1] } == BATCH or $size + $bytes > MESSAGE_BYTES;
            push @{ $chunks[-1] }, $i;
            $size += $bytes;
        }
        my @again;
        my $wait = 0.1;
        for my $sent (map { [ $_, $self->start(submit => tasks => [ @tasks[@$_] ]) ] } @chunks) {
            my ($chunk, $rid) = @$sent;
            my $outcomes = $self->finish($rid)->{outcomes};
            for my $n (0 .. $#$chunk) {
                my $error = ($out[ $chunk->[$n] ] = $outcomes->[$n])->{error} or next;
                bless $error, Kingtask::Error->class($error->{code});
                push @again, $chunk->[$n] if $error->{retryable};
                $wait = max($wait, $error->{retry_after_s} // 0);
            }
        }
        last if time + $wait > $end;
        select undef, undef, undef, $wait if @again;
        @todo = @again;
    }
    return @out;
}

# The record once the task has ended, undef if it has not after so many seconds.
sub wait {
    my ($self, $id, $timeout) = @_;
    my $end = defined $timeout ? time + $timeout : 9**9**9;
    while (1) {
        my $reply = $self->ask(wait => id => $id, timeout_s => max(0, min(60, $end - time)));
        return _record($reply->{task}) unless $reply->{pending};
        return if time >= $end;
    }
}

# --- requests under way --------------------------------------------------------------------------

sub ask { my ($self, @request) = @_; $self->finish($self->start(@request)) }

# Sends a request; any number may be under way. finish(rid) gives its reply or throws.
sub start {
    my ($self, $op, %fields) = @_;
    my $rid = ++$self->{rid};
    $self->_turn while keys %{ $self->{pending} } >= UNDER_WAY;
    my $bytes = _pack({ %fields, v => 1, rid => $rid, op => $op });
    die bless { code => 'too_big', message => 'the message is over the limit', stored => 'no' },
        Kingtask::Error->class('too_big') if length $bytes > MESSAGE_BYTES;    # the broker would hang up
    $self->{pending}{$rid} = {
        rid  => $rid, op => $op, bytes => $bytes, tries => 0, due => time,
        ends => time + $self->{timeout} + ($fields{timeout_s} // 0),
    };
    $self->_turn(0);
    return $rid;
}

sub finish {
    my ($self, $rid) = @_;
    $self->_turn while $self->{pending}{$rid};
    my $reply = delete $self->{done}{$rid} or die "no request $rid\n";
    return $reply if $reply->{ok};
    die bless $reply->{error}, Kingtask::Error->class($reply->{error}{code});
}

# Sends what is due, reads what is there, leaves a broker that is silent.
sub _turn {
    my ($self, $patience) = (@_, 0.25);
    my $pending = $self->{pending};
    my $now = time;
    for my $request (sort { $a->{rid} <=> $b->{rid} } values %$pending) {
        if ($now >= $request->{ends}) {
            $self->_settle($request, $request->{last} // { code => 'timeout', message => 'no answer in time',
                retryable => 1, stored => $request->{tries} ? 'unknown' : 'no' });
        }
        elsif (defined $request->{due} and $now >= $request->{due} and $now >= ($self->{rest} // 0)) {
            $self->_send($request->{bytes});
            $self->{asked} //= $now;
            @$request{qw(due sent)} = (undef, $now);
            $request->{tries}++;
        }
    }
    my $socket = $self->{socket} or return _sleep($patience);
    vec(my $bits = '', $socket->get_fd, 1) = 1;
    select $bits, undef, undef, $patience if $patience and !$socket->has_pollin;
    while ($socket->has_pollin) {
        $self->_take($socket->recv);
        delete $self->{asked};
        $self->{left} = 0;
    }
    return unless my @sent = grep { !defined $_->{due} } values %$pending;
    $self->{asked} //= time if grep { $_->{op} ne 'wait' } @sent;
    if (!defined $self->{asked}) {    # only waits: does it still live?
        if (time - ($self->{pinged} // 0) > $self->{patience}) {
            $self->_send(_pack({ v => 1, rid => 0, op => 'ping' }));
            $self->{asked} = $self->{pinged} = time;
        }
    }
    elsif (time - $self->{asked} > $self->{patience}) {
        $self->_leave;
    }
}

sub _take {
    my ($self, $bytes) = @_;
    my $reply = Data::MessagePack->unpack($bytes);
    my @sent = grep { $_->{sent} } values %{ $self->{pending} };
    my $request = defined $reply->{rid} ? $self->{pending}{ $reply->{rid} } : @sent == 1 ? $sent[0] : undef;
    return unless $request;    # a late one, or that of the ping
    my $error = $reply->{ok} ? undef : $reply->{error};
    if ($error and $error->{retryable}) {
        my $rest = max($error->{retry_after_s} // 0, _backoff($request->{tries}));
        @$request{qw(due last)} = (time + $rest, $error);
        $self->_leave if $error->{code} eq 'unavailable' and @{ $self->{brokers} } > 1;
    }
    else {
        $self->_settle($request, $error, $reply);
    }
}

sub _settle {
    my ($self, $request, $error, $reply) = @_;
    delete $self->{pending}{ $request->{rid} };
    $self->{done}{ $request->{rid} } = $error ? { ok => 0, error => $error } : $reply;
}

# To the next broker with all that has no answer; after each round of them a moment's rest.
sub _leave {
    my ($self) = @_;
    delete @$self{qw(socket asked)};
    $self->{at} = ($self->{at} + 1) % @{ $self->{brokers} };
    my $rounds = int(++$self->{left} / @{ $self->{brokers} });
    $self->{rest} = time + ($rounds ? _backoff($rounds) : 0);
    $_->{due} //= 0 for values %{ $self->{pending} };
}

# What does not leave, as after a handshake that failed, is not answered: it goes to the next broker.
sub _send {
    my ($self, $bytes) = @_;
    my $socket = $self->_socket;
    eval { $socket->send($bytes, ZMQ_DONTWAIT) };
    return;
}

sub _socket {
    my ($self) = @_;
    return $self->{socket} //= do {
        my $socket = $self->{context}->socket(ZMQ_DEALER);    # ZMQ::FFI lingers for 0 ms
        $socket->set(ZMQ_HEARTBEAT_IVL, 'int', 1000);
        $socket->set(ZMQ_HEARTBEAT_TIMEOUT, 'int', 5000);
        $socket->set(ZMQ_HEARTBEAT_TTL, 'int', 10_000);
        $socket->set(ZMQ_SNDHWM, 'int', 0);
        if (my $curve = $self->{curve}) {
            $socket->set(ZMQ_CURVE_SERVERKEY, 'string', $curve->{server});
            $socket->set(ZMQ_CURVE_PUBLICKEY, 'string', $curve->{public});
            $socket->set(ZMQ_CURVE_SECRETKEY, 'string', $curve->{secret});
        }
        $socket->connect($self->{brokers}[ $self->{at} ]);
        $socket;
    };
}

sub _backoff { my ($n) = @_; return min(5, 0.1 * 2**min($n, 10)) * (0.5 + rand 0.5) }
sub _sleep { my ($s) = @_; select undef, undef, undef, $s; return }

# --- data ----------------------------------------------------------------------------------------

sub uuid {
    open my $random, '<:raw', '/dev/urandom' or die "/dev/urandom: $!\n";
    read $random, my $bytes, 16;
    vec($bytes, 6, 8) = vec($bytes, 6, 8) & 0x0f | 0x40;
    vec($bytes, 8, 8) = vec($bytes, 8, 8) & 0x3f | 0x80;
    return join '-', unpack 'H8 H4 H4 H4 H12', $bytes;
}

sub _task {
    my %task = @_;
    $task{id} //= uuid();
    $task{start_at} = delete $task{at} if exists $task{at};
    $task{delay_s} = delete $task{delay} if exists $task{delay};
    delete @task{ grep { !defined $task{$_} } keys %task };
    return \%task;
}

sub _record { my ($task) = @_; return { %ABSENT, %$task } }

# msgpack: a hash by rank of its keys, text as str, stdin as bin, numbers where the page wants numbers.
sub _pack {
    my ($value, $key) = (@_, '');
    state $str = Data::MessagePack->new->utf8;
    if (ref $value eq 'HASH') {
        my @keys = sort { ($RANK{$a} // 999) <=> ($RANK{$b} // 999) or $a cmp $b } keys %$value;
        return _head(0x80, 0xde, scalar @keys)
            . join '', map { $str->pack($_) . _pack($value->{$_}, $key eq 'env' ? 'text' : $_) } @keys;
    }
    return _head(0x90, 0xdc, scalar @$value) . join '', map { _pack($_, $key) } @$value if ref $value eq 'ARRAY';
    return "\xc0" unless defined $value;
    if ($key eq 'stdin') {
        utf8::downgrade(my $bytes = "$value", 1) or die "stdin: expected bytes, got wide characters\n";
        return Data::MessagePack->pack($bytes);
    }
    return $NUMBER{$key} && looks_like_number($value) ? Data::MessagePack->pack(0 + $value) : $str->pack("$value");
}

sub _head { my ($fix, $wide, $n) = @_; return $n < 16 ? chr($fix | $n) : pack 'Cn', $wide, $n }

package Kingtask::Error;

# Thrown as Kingtask::Error::<code>, such as Kingtask::Error::not_found; a code that is new as Kingtask::Error.

use overload '""' => sub { "$_[0]{code}: $_[0]{message}" }, fallback => 1;

our @CODES = qw(invalid_request malformed bad_frames too_big too_deep unsupported_version unknown_op permission_denied
    not_found id_conflict wrong_state busy rate_limited unavailable store_full not_confirmed internal timeout);

{
    no strict 'refs';
    @{"Kingtask::Error::${_}::ISA"} = ('Kingtask::Error') for @CODES;
    for my $field (qw(code message retryable stored field retry_after_s)) {
        *$field = sub { $_[0]{$field} };
    }
}

sub class {
    my ($class, $code) = @_;
    return (grep { $_ eq $code } @CODES) ? "${class}::$code" : $class;
}

1;
