#!/usr/bin/perl
# Compares the client with ../vectors: what it sends byte by byte, what it reads value by value.

use v5.20;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Data::MessagePack;
use JSON::PP;
use Kingtask;

my ($same, $alike, $bad) = (0, 0, 0);
binmode STDOUT, ':utf8';

sub plain {    # JSON's idea of a value, as text to compare
    my ($v) = @_;
    return 'nil' unless defined $v;
    return $v ? 'true' : 'false' if ref($v) =~ /Boolean/;
    return '[' . join(',', map { plain($_) } @$v) . ']' if ref $v eq 'ARRAY';
    return $v unless ref $v;
    return "bin:$v->{'$bin'}" if exists $v->{'$bin'};
    return '{' . join(',', map { "$_=" . plain($v->{$_}) } sort keys %$v) . '}';
}

sub unbin {    # {"$bin": hex} to bytes, for sending
    my ($v) = @_;
    return [ map { unbin($_) } @$v ] if ref $v eq 'ARRAY';
    return $v if ref $v ne 'HASH';
    return pack 'H*', $v->{'$bin'} if exists $v->{'$bin'};
    return { map { $_ => unbin($v->{$_}) } keys %$v };
}

sub rebin {    # bytes of a reply to the text that plain() makes of {"$bin": hex}
    my ($v, $key) = (@_, '');
    return [ map { rebin($_, $key) } @$v ] if ref $v eq 'ARRAY';
    return { map { $_ => rebin($v->{$_}, $_) } keys %$v } if ref $v eq 'HASH';
    return $key =~ /^(stdout|stderr|stderr_tail|stdin)$/ && defined $v && !utf8::is_utf8($v)
        ? { '$bin' => unpack 'H*', $v } : $v;
}

for my $file (qw(ops refused refused-by-state)) {
    open my $in, '<:raw', "$FindBin::Bin/../vectors/$file.json" or die $!;
    for my $vector (@{ decode_json(join '', <$in>) }) {
        my ($request, $reply) = @$vector{qw(request reply)};
        my $got = Data::MessagePack->unpack(pack 'H*', $reply->{frames}[-1]);
        my ($is, $should) = (plain(rebin($got)), plain($reply->{value}));
        $is eq $should ? $same++ : ($bad++, say "reply: $vector->{name}\n  $is\n  $should");
        next if $file eq 'refused' or $request->{encoding};
        my $value = unbin($request->{value});
        my $bytes = unpack 'H*', Kingtask::_pack($value);
        if ($bytes eq $request->{frames}[-1]) { $same++; next }
        my ($ours, $theirs) = map { plain(rebin(Data::MessagePack->unpack(pack 'H*', $_))) } $bytes, $request->{frames}[-1];
        if ($ours eq $theirs) { $alike++; say "request, other bytes of the same value: $vector->{name}" }
        else                  { $bad++;   say "request: $vector->{name}\n  $bytes\n  $request->{frames}[-1]" }
    }
}
say "$same the same, $alike alike, $bad not";
exit($bad ? 1 : 0);
