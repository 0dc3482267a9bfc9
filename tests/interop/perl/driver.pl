#!/usr/bin/perl
# The matrix test's hand on this client: a command for each line of standard input, an answer for each on standard
# output, both msgpack in hex.

use v5.20;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Data::MessagePack;
use Kingtask;
use Scalar::Util qw(reftype);
use ZMQ::FFI::Constants qw(ZMQ_DEALER);

$| = 1;
my ($client, $broker);
my %BYTES = map { $_ => 1 } qw(stdout stderr stderr_tail frames);

# A reply's numbers are numbers here, which Kingtask::_pack decides by the fields of requests.
sub pack_answer {
    my ($value, $key) = (@_, '');
    my $type = reftype($value) // '';
    state $text = Data::MessagePack->new->utf8;
    if ($type eq 'ARRAY') {
        return Kingtask::_head(0x90, 0xdc, scalar @$value) . join '', map { pack_answer($_, $key) } @$value;
    }
    if ($type eq 'HASH') {
        return Kingtask::_head(0x80, 0xde, scalar keys %$value)
            . join '', map { $text->pack("$_") . pack_answer($value->{$_}, $_) } keys %$value;
    }
    return $value ? "\xc3" : "\xc2" if $type;
    return $BYTES{$key} && defined $value ? Data::MessagePack->pack($value) : $text->pack($value);
}

my %do = (
    open => sub {
        my ($command) = @_;
        $broker = "tcp://$command->{brokers}[0]";
        $client = Kingtask->new(brokers => $command->{brokers}, timeout => $command->{timeout_s},
            curve => $command->{keys});
        return;
    },
    ping        => sub { $client->ping },
    submit      => sub { $client->ask(submit => task => Kingtask::_task(%{ $_[0]{task} })) },
    submit_many => sub { [ $client->submit_many(@{ $_[0]{tasks} }) ] },
    pipeline    => sub {
        my @rids = map { $client->start(submit => task => $_) } @{ $_[0]{tasks} };
        return [ map { $client->finish($_) } @rids ];
    },
    get    => sub { $client->get($_[0]{id}) },
    wait   => sub { $client->wait($_[0]{id}, $_[0]{timeout_s}) // die "pending\n" },
    cancel => sub { $client->cancel($_[0]{id}) },
    read   => sub {
        my $reply = Data::MessagePack->unpack($_[0]{message});
        die bless $reply->{error}, Kingtask::Error->class($reply->{error}{code}) unless $reply->{ok};
        return $reply;
    },
    exchange => sub {
        my $context = ZMQ::FFI->new;    # with its end the socket would be closed
        my $socket = $context->socket(ZMQ_DEALER);
        $socket->connect($broker);
        $socket->send_multipart($_[0]{frames});
        return { frames => [ $socket->recv_multipart ] };
    },
);

sub failure {
    my ($error) = @_;
    return { kind => 'pending', error => undef } if $error eq "pending\n";
    return { kind => 'usage', error => $error } if $error =~ /^curve: /;
    die $error unless ref $error;
    return { kind => 'no_answer', error => $error->message } if $error->code eq 'timeout';
    return { kind => 'refused', error => {%$error} };
}

while (my $line = <STDIN>) {
    chomp $line;
    my $command = Data::MessagePack->unpack(pack 'H*', $line);
    my $answer = eval { { ok => scalar $do{ $command->{do} }->($command) } } // failure($@);
    $answer->{ok} = $answer->{ok}{frames} and $BYTES{ok} = 1 if $command->{do} eq 'exchange';
    say unpack 'H*', pack_answer($answer);
    delete $BYTES{ok};
}
