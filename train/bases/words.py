"""Plain words for emoji whose Unicode names nobody types: "car" for "automobile".

Every word here is also one of Unicode's or OpenMoji's tags for that emoji, or everyday English.
"""

from __future__ import annotations

_TABLE = """
automobile: car, red car
oncoming automobile: car
sport utility vehicle: blue car, jeep
deciduous tree: tree, green tree
evergreen tree: pine tree, fir
red apple: apple
hamburger: burger
fire engine: fire truck
dog face: puppy, dog head
cat face: kitten, cat head
mouse face: cute mouse
rabbit face: bunny
cow face: cow head
pig face: pig head
horse face: horse head
t-rex: dinosaur
sauropod: long neck dinosaur
lady beetle: ladybug
honeybee: bee
cherry blossom: pink flower
blossom: flower, yellow flower
white flower: flower
leafless tree: bare tree
four leaf clover: clover
tangerine: orange
cherries: cherry
kiwi fruit: kiwi
ear of corn: corn
hot pepper: chili
leafy green: lettuce
cheese wedge: cheese
french fries: fries
shallow pan of food: paella
pot of food: stew
bowl with spoon: cereal
green salad: salad
steaming bowl: ramen, noodles
spaghetti: pasta
ice cream: bowl of ice cream
soft ice cream: ice cream cone
doughnut: donut
birthday cake: cake
shortcake: slice of cake
lollipop: sweet
honey pot: honey
glass of milk: milk
hot beverage: coffee, cup of coffee
bottle with popping cork: champagne
wine glass: wine, red wine
cocktail glass: cocktail
beer mug: beer
cup with straw: soda
kitchen knife: knife
snow-capped mountain: snowy mountain
classical building: temple
house with garden: house and tree
office building: office
locomotive: steam train
bullet train: fast train
high-speed train: train
police car: patrol car
oncoming police car: police car
delivery truck: truck
articulated lorry: lorry
racing car: race car
motorcycle: motorbike
motor scooter: scooter
bicycle: bike
sailboat: boat
ship: cruise ship
airplane: plane
flying saucer: ufo
luggage: suitcase
hourglass done: hourglass
mantelpiece clock: clock
full moon face: moon face
crescent moon: moon
ringed planet: saturn
sun with face: smiling sun
cloud with rain: rain cloud
cloud with lightning: thunder cloud
cloud with snow: snow cloud
high voltage: lightning
umbrella with rain drops: umbrella in rain
fire: flame
droplet: drop of water
water wave: wave
snowman without snow: snow man
jack-o-lantern: pumpkin
wrapped gift: gift, present
1st place medal: gold medal
2nd place medal: silver medal
3rd place medal: bronze medal
soccer ball: football
flying disc: frisbee
bullseye: target
video game: game controller
game die: dice
bowling: bowling ball
artist palette: palette
framed picture: painting
necktie: tie
man's shoe: shoe
running shoe: sneaker
high-heeled shoe: high heel
gem stone: diamond
musical note: note
musical keyboard: piano
mobile phone: phone, smartphone
telephone: old phone
desktop computer: computer
floppy disk: diskette
optical disk: cd
television: tv
movie camera: film camera
magnifying glass tilted left: magnifying glass
light bulb: lamp, bulb
closed book: book, red book
open book: white book
money bag: sack of money
envelope: letter
incoming envelope: mail
package: box, parcel
memo: note and pencil
wastebasket: bin
locked: lock, padlock
unlocked: open lock
crossed swords: swords
balance scale: scales
drop of blood: blood
headphone: headphones
kick scooter: push scooter
satellite antenna: satellite dish
rolled-up newspaper: rolled newspaper
roll of paper: toilet paper
backpack: school bag
top hat: black hat
woman's hat: hat
graduation cap: student hat
billed cap: cap
globe showing americas: earth, globe
snow-capped mountain: alps
castle: fortress
star: yellow star
crown: gold crown
sun: yellow sun
guitar: red guitar
"""


def plain_names() -> dict[str, tuple[str, ...]]:
    """Maps an emoji's Unicode name to everyday names for the same picture."""
    table: dict[str, tuple[str, ...]] = {}
    for line in _TABLE.replace("'", "\u2019").strip().splitlines():
        name, _, words = line.partition(": ")
        table[name] = table.get(name, ()) + tuple(words.split(", "))
    return table
